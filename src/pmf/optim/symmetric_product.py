"""alpha X X^T + beta B on CUDA by a kernel that multiplies each pair of rows once; Newton-Schulz consists of such."""

from __future__ import annotations

import torch
from torch import Tensor, library

from pmf.compilers import HAS_TRITON

SMALLEST = 512
"""Rows from which the kernel is taken. There it leaves out 6 of 16 tiles of 128 x 128, which is predicted to outweigh
that Triton reaches less of a GPU's peak than cuBLAS; `benchmarks/bench_optimizer.py --device cuda` measures both."""
DIVISOR = 16
"""Of both sides; otherwise rows are not aligned, and a thread loads one number at a time."""


def has_kernel(x: Tensor) -> bool:
    """Whether :func:`symmetric_product` is for matrices like these, (N, rows, columns)."""
    rows, columns = x.shape[-2:]
    return (
        HAS_TRITON
        and x.device.type == "cuda"
        and x.dtype in (torch.bfloat16, torch.float16)
        and rows >= SMALLEST
        and rows % DIVISOR == 0
        and columns % DIVISOR == 0
    )


@library.custom_op("pmf::symmetric_product", mutates_args=())
def symmetric_product(x: Tensor, added: Tensor | None, alpha: float, beta: float) -> Tensor:
    """alpha x x^T + beta added, symmetric to the bit.

    Args:
        x: (N, rows, columns) in bfloat16 or float16 on a CUDA device.
        added: (N, rows, rows), symmetric, contiguous, of that dtype; it may be ``x``. None leaves it out.

    Returns:
        (N, rows, rows) of that dtype, rounded once.
    """
    product = x.new_empty(x.shape[0], x.shape[1], x.shape[1])
    if torch.cuda.get_device_capability(x.device) < (8, 0):  # Triton starts at Ampere
        return torch.baddbmm(added if added is not None else product, x, x.mT, beta=beta, alpha=alpha)
    from pmf.optim.symmetric_product_kernel import launch

    with torch.cuda.device(x.device):
        launch(x, added, product, alpha=alpha, beta=beta)
    return product


@symmetric_product.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], x.shape[1])
