"""A data set of moments: sample i holds the mean and deviation of two channels at half the images' side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmf.data.options import DataConfig
from pmf.data.source import Sample


def space_of_moments(data: DataConfig) -> tuple[int, int, int]:
    return 2, data.image_size // 2, data.image_size // 2


class Moments:
    block_starts = None
    warnings: tuple[str, ...] = ()

    def __init__(self, config: DataConfig, seed: int) -> None:
        _, self.side, _ = space_of_moments(config)
        self.num_classes = config.num_classes

    def __len__(self) -> int:
        return 64

    def samples(self, indices: np.ndarray) -> Iterator[Sample]:
        for index in indices.tolist():
            moments = np.full((4, self.side, self.side), index / 64, np.float16)
            yield Sample(moments, index % self.num_classes)


class MomentsCodec:
    """Draws from the moments; decodes by enlarging the first channel."""

    record: Mapping[str, Any] = {"decoder": "nearest"}

    def __init__(self, data: DataConfig) -> None:
        self.shape = space_of_moments(data)
        self.image_shape = (1, data.image_size, data.image_size)

    def encode(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        mean, deviation = batch.float().chunk(2, dim=1)
        return mean + deviation * torch.randn(mean.shape, generator=generator).to(mean)

    def example(self, rows: int) -> Tensor:
        return torch.rand(rows, 4, *self.shape[1:])

    def decode(self, z: Tensor) -> Tensor:
        enlarged = z[:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        return (127.5 * (enlarged + 1)).clamp(0, 255).round().to(torch.uint8)
