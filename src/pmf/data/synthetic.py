"""Generated images, for tests, benchmarks and first steps without a download."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pmf.data.options import DataConfig
from pmf.data.source import Sample
from pmf.randomness import Stream, numpy_generator

# Turning by the golden angle keeps the directions of any number of classes apart.
GOLDEN_ANGLE = np.pi * (3 - 5**0.5)


class SyntheticSource:
    """``data.num_images`` waves: direction, frequency and colour tell the class, phase and noise vary per image.

    Image i is a function of (seed, i); its label is i modulo ``data.num_classes``.
    """

    block_starts = None
    warnings = ()

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return self.config.num_images

    def samples(self, indices: np.ndarray) -> Iterator[Sample]:
        """See :class:`pmf.data.source.Source`."""
        for index in indices.tolist():
            label = index % self.config.num_classes
            yield Sample(self._image(index, label), label)

    def _image(self, index: int, label: int) -> np.ndarray:
        size, channels = self.config.image_size, self.config.channels
        generator = numpy_generator(Stream.SYNTHETIC, self.seed, index)
        phase = generator.uniform(0, 2 * np.pi)
        noise = generator.standard_normal((channels, size, size), np.float32)
        angle = label * GOLDEN_ANGLE
        axis = np.arange(size, dtype=np.float32) / size
        across = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
        wave = np.sin(2 * np.pi * (1 + label % 3) * across + phase)
        colour = 0.6 + 0.4 * np.cos(angle + 2 * np.pi * np.arange(channels) / 3)
        pixels = 127.5 + 110 * colour[:, None, None] * wave + 4 * noise
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
