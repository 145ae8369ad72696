"""The tangent of attention: written out, and the kernel that takes its place on CUDA, as far as that needs no GPU."""

from __future__ import annotations

import itertools
import json
import os

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pmf.net import attention as attention_module
from pmf.net.attention import HEAD_WIDTHS, attention
from pmf.net.dual import Dual
from pmf.net.layers import Attention
from tests.compiled_kernels import SHARED_MEMORY, compile_kernel
from tests.launch import ROOT, launch
from tests.net.attention_inputs import exact, random_duals, relative_error

needs_triton = pytest.mark.skipif(not attention_module.HAS_TRITON, reason="needs Triton")


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_the_written_out_tangent_is_the_derivative(rows, dtype, tolerance):
    duals = random_duals(3, rows, 2, 84, 64, dtype)
    found = attention(*duals)
    assert found.tangent.dtype == dtype
    assert relative_error(found.tangent, exact(duals)) < tolerance


# Rounding the result alone gives 1.7e-3 and 2.1e-4. With scores and O rounded to half precision it was 4.8e-3 and
# 5.9e-4, with the gain 1.5e-2 and 1.9e-3.
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
    # 3.0e-3, from P, dP and the products with them; with rounded scores it was 5.2e-3.
    assert relative_error(found, exact(duals)) < 4e-3


TYPES = {"half": ("bf16", "fp16"), "ieee": ("fp32",), "tf32": ("fp32",)}
QUICK = {("half", "bf16", 64, 90), ("half", "bf16", 80, 80)}


@needs_triton
@pytest.mark.parametrize(
    ("precision", "dtype", "width", "capability"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for precision, dtypes in TYPES.items()
        for case in itertools.product((precision,), dtypes, (16, 48, 64, 72, 80), (80, 90))
        if case[2] in HEAD_WIDTHS[torch.float32 if dtypes == ("fp32",) else torch.bfloat16]
    ],
)
def test_the_kernel_fits_into_registers_and_shared_memory(precision, dtype, width, capability):
    from pmf.net import attention_kernel

    (main, rest), tiles = attention_kernel.parts_of_width(width), attention_kernel.TILES[precision]
    constants = {
        "UNIT": attention_kernel.ALIGNED,
        "TOKENS": 276,
        "WIDTH": width,
        "MAIN": main,
        "REST": rest,
        "QUERIES": tiles.queries,
        "KEYS": tiles.keys,
        "PRECISION": "tf32" if precision == "tf32" else "ieee",
    }
    kernel = attention_kernel.attention_tangent_kernel
    types = {**dict.fromkeys(kernel.arg_names[:7], f"*{dtype}"), "scale": "fp32"}
    compiled = compile_kernel(kernel, types, constants, capability, warps=tiles.warps, stages=tiles.stages)
    print(f"sm_{capability} {dtype} {precision} width {width}: {compiled}")
    assert compiled.stack == 0, "registers were spilled"
    assert compiled.shared <= SHARED_MEMORY[capability]
    if precision == "half":
        assert {80: "mma.sync", 90: "wgmma"}[capability] in compiled.ptx
    assert ("mma" in compiled.ptx) == (precision != "ieee")


@needs_triton
def test_the_kernel_is_the_written_out_form():
    """In float32, by Triton's interpreter: other sums of up to 276 terms than the exact form's."""
    result = launch(
        "-m", "tests.net.interpreted_attention", TRITON_INTERPRET="1", PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    )
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    wrong = {name: errors.pop(name) for name in list(errors) if name.startswith("wrong")}
    assert len(errors) == 6 and len(wrong) == 3
    assert {name: error for name, error in errors.items() if not error < 1e-6} == {}
    assert {name: error for name, error in wrong.items() if not error > 1e-5} == {}


class Twice(nn.Module):
    """Two layers of attention, by which a compiler sees the operation twice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = Attention(width, heads), Attention(width, heads)

    def forward(self, x: Dual) -> tuple[Tensor, Tensor]:
        def heads_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:  # of a rotation by nothing
            return tensor.to(dtype).transpose(1, 2)

        x = self.second(self.first(x, heads_first), heads_first)
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
