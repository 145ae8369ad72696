"""A data set: image i is one grey everywhere, and its label is i modulo the number of classes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pmf.data.options import DataConfig
from pmf.data.source import Sample


class Greys:
    block_starts = None
    warnings: tuple[str, ...] = ()

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.shape = (config.channels, config.image_size, config.image_size)
        self.num_classes = config.num_classes

    def __len__(self) -> int:
        return 64

    def samples(self, indices: np.ndarray) -> Iterator[Sample]:
        for index in indices.tolist():
            yield Sample(np.full(self.shape, 4 * index, np.uint8), index % self.num_classes)
