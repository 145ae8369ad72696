"""The kernel of Newton-Schulz's symmetric products, as far as that needs no GPU; torch's products are the oracle."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pmf.optim import symmetric_product
from pmf.optim.muon import orthogonalize
from tests.compiled_kernels import SHARED_MEMORY, compile_kernel
from tests.launch import ROOT, launch

pytestmark = pytest.mark.skipif(not symmetric_product.HAS_TRITON, reason="needs Triton")


def test_the_kernel_gives_the_product_and_it_is_symmetric():
    """In float32, by Triton's interpreter: sums of up to 50 terms in another order."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    result = launch("-m", "tests.optim.interpreted_product", TRITON_INTERPRET="1", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    assert errors.pop("wrong by 1e-3 of an entry") > 1e-5
    assert len(errors) == 12
    assert {name: error for name, error in errors.items() if not error < 1e-6} == {}


@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("adds", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("layout", ["wide", pytest.param("tall", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_the_kernel_fits_into_registers_and_shared_memory(dtype, layout, adds, capability):
    from pmf.optim.symmetric_product_kernel import HALF, symmetric_product_kernel

    sides = {"ROWS": 768, "COLUMNS": 2048, "x_column" if layout == "wide" else "x_row": 1}
    compiled = compile_kernel(
        symmetric_product_kernel,
        {**dict.fromkeys(("x", "added", "product"), f"*{dtype}"), "alpha": "fp32", "beta": "fp32"},
        {**sides, "ADDS": adds, "TILE": HALF.side, "INNER": HALF.inner},
        capability,
        warps=HALF.warps,
        stages=HALF.stages,
        multiples=("x_matrix", "x_row", "x_column"),
    )
    print(f"sm_{capability} {dtype} {layout} adds {adds}: {compiled}")
    assert compiled.stack == 0, "registers were spilled"
    assert compiled.shared <= SHARED_MEMORY[capability]
    assert {80: "mma.sync", 90: "wgmma"}[capability] in compiled.ptx


class Names(TorchDispatchMode):
    """The operations that run within, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("shape", "dtype", "products"),
    [
        ((2, 768, 2048), torch.bfloat16, (10, 0, 5)),
        ((2, 2048, 768), torch.bfloat16, (10, 0, 5)),
        ((2, 1024, 2730), torch.bfloat16, (5, 5, 5)),  # the rows of X are not aligned, those of X X^T are
        ((2, 256, 768), torch.bfloat16, (0, 5, 10)),
        ((2, 768, 768), None, (0, 5, 10)),
    ],
)
def test_it_is_taken_for_large_half_precision_matrices_on_cuda(shape, dtype, products):
    """Five steps, each of which has two symmetric products and one other."""
    with FakeTensorMode(), torch.device("cuda"):
        matrices = torch.empty(shape)
        with Names() as names:
            result = orthogonalize(matrices, dtype=dtype)
    assert (result.shape, result.dtype, result.device.type) == (matrices.shape, torch.float32, "cuda")
    assert tuple(names.seen.count(name) for name in ("symmetric_product", "bmm", "baddbmm")) == products
