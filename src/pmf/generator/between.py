"""What lies between two noises and between two classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pmf.errors import UserError


def noise_between(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Points between two noises by spherical interpolation (slerp), so that all have the length that normal noise has.

    The way is a great circle where both are of one length, as normal noise of many values nearly is.

    Args:
        start, end: (C, H, W).
        fractions: (N,) float64 in [0, 1].

    Returns:
        (N, C, H, W) of the dtype of ``start``; at 0 and 1 the noises themselves, to the bit.
    """
    a, b = start.double(), end.double()
    angle = torch.arccos(torch.clamp((a * b).sum() / (a.norm() * b.norm()), -1, 1))
    if angle == 0:
        return start.expand(len(fractions), *start.shape).clone()
    shape = (-1, *(1,) * a.dim())
    of_start, of_end = (torch.sin(part * angle) / torch.sin(angle) for part in (1 - fractions, fractions))
    return (of_start.view(shape) * a + of_end.view(shape) * b).to(start.dtype)


@contextmanager
def classes_between(network: nn.Module, start: int, end: int, fractions: Tensor) -> Iterator[None]:
    """A context in which the network is told classes on the line between the embeddings of two.

    Args:
        network: with a table of classes, ``label_embedding``.
        start, end: classes.
        fractions: (B,) in [0, 1], one for each row that the network is given.

    Raises:
        UserError: the network has no such table.
    """
    table = getattr(network, "label_embedding", None)
    if not isinstance(table, nn.Embedding):
        raise UserError(f"interpolate: {type(network).__name__} has no label_embedding to go along; give one class")
    a, b = table.weight[start], table.weight[end]
    rows = torch.lerp(a, b, fractions.to(a)[:, None])  # (B, width)

    def replaced(*_: Any) -> Tensor:
        return rows

    hook = table.register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()
