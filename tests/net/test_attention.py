"""The tangent of attention: written out, and the kernel that takes its place on CUDA, as far as that needs no GPU."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pmf.net import attention as attention_module
from pmf.net.attention import attention, written_out_tangent
from pmf.net.dual import Dual, value_of
from pmf.net.layers import Attention
from tests.compiled_kernels import SHARED_MEMORY, compile_kernel
from tests.launch import launch
from tests.net.attention_inputs import exact, random_duals, relative_error

needs_triton = pytest.mark.skipif(not attention_module.HAS_TRITON, reason="needs Triton")


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_the_written_out_tangent_is_the_derivative(rows, dtype, tolerance):
    duals = random_duals(3, rows, 2, 84, 64, dtype)
    found = attention(*duals)
    assert found.tangent.dtype == dtype
    assert relative_error(found.tangent, exact(duals)) < tolerance


# Rounding the result alone gives 1.7e-3 and 2.1e-4. Scores, or O, rounded to half precision gave 4.7e-3 and 5.9e-4.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-3), (torch.float16, 2.5e-4)])
@pytest.mark.parametrize("gain", [1.0, 5.0])
def test_in_half_precision_it_is_off_by_little_more_than_its_rounding(dtype, tolerance, gain):
    """With the gain some probabilities are close to 1, and scores up to 50."""
    duals = random_duals(2, 1, 2, 276, 64, dtype)
    duals[0] = Dual(duals[0].value * gain, duals[0].tangent)
    with torch.autocast("cpu", dtype):
        found = attention(*duals)
    assert found.tangent.dtype == found.value.dtype == dtype
    assert relative_error(found.tangent, exact(duals)) < tolerance


def test_forward_mode_differentiation_keeps_its_scores_in_float32():
    duals = random_duals(1, 1, 2, 276, 64, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.func.jvp(attention, tuple(d.value for d in duals), tuple(d.tangent for d in duals))[1]
    # P, dP and three products are rounded; with the scores rounded as well it was 8e-3.
    assert relative_error(found, exact(duals)) < 5e-3


TILES = {"bf16": "HALF", "fp16": "HALF", "fp32": "SINGLE"}
QUICK = {("bf16", 64, 90), ("bf16", 80, 80)}


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "width", "capability", "precision"),
    [
        pytest.param(*case, precision, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(TILES, (64, 72, 80), (80, 90))
        for precision in (("ieee", "tf32") if case[0] == "fp32" else ("ieee",))
    ],
)
def test_the_kernel_fits_into_registers_and_shared_memory(dtype, width, capability, precision):
    from pmf.net import attention_kernel

    main, rest = attention_kernel.parts_of_width(width)
    tiles = getattr(attention_kernel, TILES[dtype])
    constants = {
        "UNIT": attention_kernel.ALIGNED,
        "WIDTH": width,
        "MAIN": main,
        "REST": rest,
        "QUERIES": tiles.queries,
        "KEYS": tiles.keys,
        "PRECISION": precision,
    }
    kernel = attention_kernel.attention_tangent_kernel
    pointers = dict.fromkeys(kernel.arg_names[:7], f"*{dtype}")
    compiled = compile_kernel(
        kernel, {**pointers, "scale": "fp32"}, constants, capability, warps=tiles.warps, stages=tiles.stages
    )
    print(f"sm_{capability} {dtype} {precision} width {width}: {compiled}")
    assert compiled.stack == 0, "registers were spilled"
    assert compiled.shared <= SHARED_MEMORY[capability]
    tensor_cores = {90: "wgmma", 80: "mma.sync"}[capability]
    assert precision == "tf32" or (tensor_cores in compiled.ptx) == (dtype != "fp32")


@needs_triton
def test_the_kernel_is_the_written_out_form():
    """In float32, by Triton's interpreter: other sums of up to 276 terms than the exact form's."""
    result = launch("-m", "tests.net.interpreted_attention", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    wrong = {name: errors.pop(name) for name in list(errors) if name.startswith("wrong")}
    assert len(errors) == 5 and len(wrong) == 3
    assert {name: error for name, error in errors.items() if not error < 1e-6} == {}
    assert {name: error for name, error in wrong.items() if not error > 1e-5} == {}


class Twice(nn.Module):
    """Two layers of attention, by which a compiler sees the operation twice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = Attention(width, heads), Attention(width, heads)

    def forward(self, x: Dual) -> tuple[Tensor, Tensor]:
        x = self.second(self.first(x, lambda t: t), lambda t: t)
        return x.value, x.tangent


@needs_triton
def test_a_compiler_sees_one_operation_a_layer_and_any_number_of_rows():
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        layers = Twice(160, 2)
        compiled = torch.compile(layers, fullgraph=True, backend=backend)
        for rows in (2, 3, 4, 5):
            x = Dual(*(torch.empty(count, 17, 160) for count in (rows + 2, rows)))
            value, tangent = compiled(x)
            assert (tangent.device.type, tangent.dtype, tangent.shape) == ("cuda", value.dtype, (rows, 17, 160))
    assert [len([name for name in graph if "attention_tangent" in name]) for graph in graphs] == [2, 2]


@needs_triton
def test_merging_the_heads_of_its_result_copies_nothing():
    with FakeTensorMode(), torch.device("cuda"):
        duals = [Dual(*(torch.empty(rows, 12, 276, 64, dtype=torch.bfloat16) for rows in (6, 4))) for _ in range(3)]
        tangent = attention(*duals).tangent
        merged = attention_module.attention_tangent(*(d.primal for d in duals), *(d.tangent for d in duals))
    assert tangent.stride() == merged.stride() == (276 * 768, 64, 768, 1)
