"""Every source of randomness: generators that are functions of named integers."""

from __future__ import annotations

import enum

import numpy as np
import torch
from torch import Tensor


class Stream(enum.IntEnum):
    """What a random stream is for. Two purposes never share numbers, whatever the seed."""

    WEIGHTS = 1
    ORDER = 2
    FLIP = 3
    DRAWS = 4
    IMAGE_NOISE = 5
    SYNTHETIC = 6
    TRAINING_NOISE = 7
    ENCODING = 8


def numpy_generator(stream: Stream, *key: int) -> np.random.Generator:
    """A generator that is a function of the stream and of ``key`` (non-negative integers: seed, step, sample...)."""
    return np.random.default_rng((int(stream), *key))


def torch_generator(stream: Stream, *key: int) -> torch.Generator:
    """The same on the CPU for torch; see :func:`numpy_generator`."""
    state = np.random.SeedSequence((int(stream), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def normal_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normals of the images' shape, dtype and device, from a generator there that ``generator`` seeds.

    Args:
        images: of any shape. On the meta device the normals have no contents either.
        generator: on the CPU.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    if images.device.type == "meta":
        return torch.empty_like(images)
    there = torch.Generator(images.device).manual_seed(seed)
    return torch.randn(images.shape, generator=there, dtype=images.dtype, device=images.device)
