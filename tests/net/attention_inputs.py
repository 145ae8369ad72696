"""Queries, keys and values for the tests of attention, and what its tangent is."""

from __future__ import annotations

import torch
from torch import Tensor

from pmf.net.dual import Dual


def random_duals(
    rows: int, with_tangent: int, heads: int, tokens: int, width: int, dtype: torch.dtype, *, device: str = "cpu"
) -> list[Dual]:
    """Query, key and value, (rows, heads, T, d), as layers leave them: queries and keys RMS-normed and in order,
    values and all tangents views of (rows, T, heads, d); the last ``with_tangent`` rows have tangents.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        drawn = torch.randn(count, tokens, heads, width, generator=generator, dtype=torch.float64)
        return drawn.transpose(1, 2)

    query, key = (x / x.square().mean(-1, keepdim=True).sqrt() for x in (draw(rows), draw(rows)))
    values = (query.contiguous(), key.contiguous(), draw(rows))
    return [Dual(_placed(value, dtype, device), _placed(draw(with_tangent), dtype, device)) for value in values]


def _placed(tensor: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """Converted; the order in memory stays."""
    return tensor.to(device=device, dtype=dtype)


def exact(duals: list[Dual]) -> Tensor:
    """The tangent of softmax(q k^T / sqrt(d)) v by torch.func.jvp in float64, on the CPU."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1) @ value

    primals = tuple(dual.primal.cpu().double() for dual in duals)
    tangents = tuple(dual.tangent.cpu().double() for dual in duals)
    return torch.func.jvp(attention, primals, tangents)[1]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected).norm() / expected.norm())
