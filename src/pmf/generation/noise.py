"""The noise of images: a function of seed and index, drawn in threads ahead of the network that needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pmf.randomness import Stream, numpy_generator

BATCHES_AHEAD = 2
"""Whose noise is being drawn, or waits, while the network has that of another: what bounds the memory."""
TASK_VALUES = 2**17
"""Of one task of a thread: a task costs some 20 us, and the cores share even a single batch."""


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """What the noise of all images of a plan has in common.

    Attributes:
        shape: of one image's: channels, height, width.
        scale: standard deviation.
        kind: ``ours``, or ``official``: torch's CPU generator with the seed (index xor seed) mod 2^32, as in the
            evaluations of the official PyTorch branches of pMF and iMF.
    """

    seed: int
    shape: tuple[int, int, int]
    scale: float
    kind: str = "ours"


def image_noise(options: NoiseOptions, indices: Sequence[int]) -> Tensor:
    """Normal noise of images, one generator for each.

    Returns:
        (len(indices), C, H, W) float32 on the CPU.
    """
    noise = torch.empty((len(indices), *options.shape))
    _draw(options, indices, noise.numpy())
    return noise


def noise_ahead(
    options: NoiseOptions, batches: Iterable[Sequence[int]], pool: Executor, *, pinned: bool
) -> Iterator[Tensor]:
    """:func:`image_noise` of each batch in turn, while threads draw that of the next ``BATCHES_AHEAD``.

    Args:
        options: of the noise.
        batches: indices of images; a batch may be empty.
        pool: threads; numpy and torch draw without Python's lock.
        pinned: in page-locked memory, for asynchronous copies to a GPU.
    """
    pending: deque[tuple[Tensor, list[Future[None]]]] = deque()
    for indices in batches:
        noise = torch.empty((len(indices), *options.shape), pin_memory=pinned)
        values, rows = noise.numpy(), max(1, TASK_VALUES // noise[:1].numel()) if indices else 1
        starts = range(0, len(indices), rows)
        tasks = [pool.submit(_draw, options, indices[i : i + rows], values[i : i + rows]) for i in starts]
        pending.append((noise, tasks))
        if len(pending) > BATCHES_AHEAD:
            yield _drawn(*pending.popleft())
    while pending:
        yield _drawn(*pending.popleft())


def _draw(options: NoiseOptions, indices: Sequence[int], rows: np.ndarray) -> None:
    for index, row in zip(indices, rows, strict=True):
        if options.kind == "official":
            generator = torch.Generator().manual_seed((index ^ options.seed) % 2**32)
            torch.from_numpy(row).normal_(generator=generator)
        else:
            numpy_generator(Stream.IMAGE_NOISE, options.seed, index).standard_normal(out=row, dtype=np.float32)
        row *= np.float32(options.scale)  # by numpy: torch would start threads of its own


def _drawn(noise: Tensor, tasks: list[Future[None]]) -> Tensor:
    for task in tasks:
        task.result()
    return noise
