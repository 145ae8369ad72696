"""The tangent of attention on a device: our kernel against the exact derivative and the written-out form."""

from __future__ import annotations

import pytest
import torch

from pmf.net.attention import attention, has_kernel, written_out_tangent
from pmf.net.dual import Dual
from tests.gpu.devices import DEVICES, GPU
from tests.net.attention_inputs import exact, random_duals, relative_error

SHAPES = [(3, 2, 276, 64), (2, 3, 84, 72), (1, 2, 276, 80), (2, 2, 17, 64), (4, 2, 1, 16)]
# Float32: sums of up to 276 terms in another order. Half precision: the result is rounded (1.7e-3 and 2.1e-4), and in a
# kernel the probabilities too, since tensor cores take nothing else; 2.4e-3 and 2.9e-4 when that is acted out.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}


@pytest.fixture(autouse=True)
def _exact_float32():
    """Without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_the_tangent_is_the_derivative(device, dtype, shape):
    duals = random_duals(4, *shape, dtype, device=device)
    assert has_kernel(duals[0].tangent) == (device == "cuda" and (dtype != torch.float32 or shape[-1] >= 64))
    found = attention(*duals).tangent
    assert (found.dtype, found.device.type) == (dtype, device)
    assert relative_error(found, exact(duals)) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_kernel_and_written_out_form_agree_where_probabilities_are_near_one(device, dtype):
    duals = random_duals(4, 2, 2, 276, 64, dtype, device=device)
    duals[0] = Dual(duals[0].value * 5, duals[0].tangent)
    found = attention(*duals)
    written_out = written_out_tangent(*duals, found.value)
    # Gradients of attention that is this sharp cancel: rounded probabilities were off by 3.7e-3 when acted out.
    assert (
        relative_error(found.tangent, written_out.cpu().double()) < {torch.float32: 5e-6, torch.bfloat16: 6e-3}[dtype]
    )


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_a_compiled_call_gives_the_same_numbers_for_any_number_of_rows(device):
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True)
    for rows in (1, 2, 3, 4):
        duals = random_duals(5, rows, 2, 84, 64, torch.bfloat16, device=device)
        assert torch.equal(compiled(*duals).tangent, attention(*duals).tangent)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_the_kernel_can_be_captured_in_a_graph(device):
    duals = random_duals(4, 2, 2, 84, 64, torch.bfloat16, device=device)
    expected = attention(*duals).tangent
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attention(*duals).tangent
    graph.replay()
    assert torch.equal(captured, expected)
