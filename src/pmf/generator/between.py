"""What lies between two noises and between two classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pmf.errors import UserError
from pmf.generation.images import ImageMaker
from pmf.generation.plan import SamplingPlan
from pmf.net.interface import Network


def frames_between(
    maker: ImageMaker, plans: tuple[SamplingPlan, SamplingPlan], ends: tuple[int, int], batch_size: int
) -> Iterator[Tensor]:
    """Images on the way from image 0 of one plan to that of another, the first's ``num_images`` of them.

    Args:
        plans: alike but for the seed.
        ends: class of the first image and of the last.

    Yields:
        (B, C, H, W) uint8 on the CPU.

    Raises:
        UserError: two classes, of a network that has no embeddings to go between.
        NotFiniteError: an image holds NaN or infinity.
    """
    start, end = (maker.noise(plan, [0])[0] for plan in plans)
    frames = plans[0].num_images
    for places in torch.arange(frames).split(batch_size):
        fractions = places.double() / (frames - 1)
        noise = noise_between(start, end, fractions)
        with nullcontext() if ends[0] == ends[1] else classes_between(maker.network, *ends, fractions):
            yield maker.make(plans[0], places.tolist(), noise).cpu()


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
def classes_between(network: Network, start: int, end: int, fractions: Tensor) -> Iterator[None]:
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
