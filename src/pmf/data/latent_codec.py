"""Between the moments of latents, the network's space, and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pmf.data.autoencoder import autoencoder_sha256, decode_latents, load_autoencoder
from pmf.data.codec import ROUNDING, to_uint8
from pmf.data.options import LATENT_NORMALIZATIONS, DataConfig, network_shape
from pmf.randomness import normal_like

DECODED_PIXELS = 8 * 256**2
"""Of the images that are decoded in one pass, which bounds the memory that it takes; one image in any case."""


class LatentCodec:
    """The network sees latents, normalised; a new one is drawn from an image's moments each time."""

    def __init__(self, data: DataConfig) -> None:
        self.shape: tuple[int, int, int] = network_shape(data)
        self.image_shape: tuple[int, int, int] = (data.channels, data.image_size, data.image_size)
        self._autoencoder = data.autoencoder
        self._normalization = data.latent_normalization
        chosen = LATENT_NORMALIZATIONS[data.latent_normalization]
        self._mean, self._deviation = (torch.tensor(part).view(1, -1, 1, 1) for part in vars(chosen).values())

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """See :class:`Codec`; the first in a process reads the autoencoder.

        Raises:
            UserError: it cannot be read.
        """
        return {
            "autoencoder": self._autoencoder,
            "autoencoder_sha256": autoencoder_sha256(self._autoencoder),
            "latent_normalization": self._normalization,
            "rounding": ROUNDING,
        }

    def encode(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`Codec.encode`; one latent is drawn for each image.

        Args:
            batch: (B, 8, h, w) of any float type: means, then standard deviations.
            generator: of the noise.

        Raises:
            TypeError: the batch holds no such moments.
        """
        channels, *sides = self.shape
        if not batch.is_floating_point() or list(batch.shape[1:]) != [2 * channels, *sides]:
            raise TypeError(f"a batch of {batch.dtype}, {tuple(batch.shape)}, holds no moments of latents {self.shape}")
        means, deviations = batch.float().chunk(2, dim=1)  # (B, 4, h, w) each
        latents = means + deviations * normal_like(means, generator)
        mean, deviation = (part.to(batch.device, non_blocking=True) for part in (self._mean, self._deviation))
        return (latents - mean) / deviation

    def example(self, rows: int) -> Tensor:
        """See :meth:`Codec.example`."""
        channels, *sides = self.shape
        return torch.rand(rows, 2 * channels, *sides)

    def decode(self, z: Tensor) -> Tensor:
        """See :meth:`Codec.decode`; a few images at a time, however many there are.

        Raises:
            UserError: the autoencoder cannot be read.
        """
        autoencoder = load_autoencoder(self._autoencoder, z.device)
        latents = z.float() * self._deviation.to(z.device) + self._mean.to(z.device)
        rows = max(DECODED_PIXELS // self.image_shape[1] ** 2, 1)
        return torch.cat([to_uint8(decode_latents(autoencoder, part)) for part in latents.split(rows)])
