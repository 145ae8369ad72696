"""Between what a data set holds, the network's space, and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pmf.data.options import SOURCES, DataConfig, network_shape
from pmf.tables import resolve

ROUNDING = "half to even of (x + 1) / 2 * 255, clipped to 0 ... 255"
"""How :func:`to_uint8` rounds, for records."""
CACHED_VALUES = 2**18
"""float32 values, 1 MiB: of the size of a core's second-level cache."""


class Codec(Protocol):
    """Maps batches of a data set to the network's space, and the network's space to images.

    Codecs are made often, and mostly for their shapes: one with weights reads them when they are first needed, and
    keeps them for the next codec.

    Attributes:
        shape: of one element of the network's space: channels, height, width.
        image_shape: of one decoded image: channels, height, width.
        record: plain values that say how images are decoded, for result files.
    """

    shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]

    @property
    def record(self) -> Mapping[str, Any]: ...  # noqa: D102  # above

    def encode(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Map a batch of the data set to the network's space.

        Args:
            batch: (B, C, H, W) as the data set's samples are: uint8 images, or moments of any float type.
            generator: on the CPU; a function of (seed, step, micro-batch), for codecs that draw a sample.

        Returns:
            (B, *shape) float32, on the batch's device.

        Raises:
            TypeError: the batch is of a type that the codec does not take.
        """
        ...

    def example(self, rows: int) -> Tensor:
        """A made-up batch of the data set's type, for measurements: (rows, C, H, W) on the CPU."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Map what the network made to images.

        Args:
            z: (B, *shape) float, finite.

        Returns:
            (B, *image_shape) uint8, on the same device.
        """
        ...


class PixelCodec:
    """The network sees the pixels: uint8 is [-1, 1]."""

    def __init__(self, data: DataConfig) -> None:
        self.shape: tuple[int, int, int] = network_shape(data)
        self.image_shape: tuple[int, int, int] = self.shape
        self.record: Mapping[str, Any] = {"rounding": ROUNDING}

    def encode(self, batch: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """See :meth:`Codec.encode`; nothing is drawn.

        Raises:
            TypeError: the batch is not uint8.
        """
        if batch.dtype != torch.uint8:
            raise TypeError(f"a batch of {batch.dtype} holds no pixels; name the codec of its data.kind in SOURCES")
        return to_unit_range(batch)

    def example(self, rows: int) -> Tensor:
        """See :meth:`Codec.example`."""
        return torch.randint(256, (rows, *self.shape), dtype=torch.uint8)

    def decode(self, z: Tensor) -> Tensor:
        """See :meth:`Codec.decode`."""
        return torch.cat([to_uint8(part) for part in in_cache(z)])


def create_codec(data: DataConfig) -> Codec:
    """The codec that the row of ``data.kind`` names."""
    codec: Codec = resolve(SOURCES[data.kind].codec)(data)
    return codec


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 of any shape to float32 in [-1, 1], on the tensor's device, with the papers' rounding."""
    # (x / 255 - 0.5) / 0.5, where XLA multiplies by the float32 nearest to 1 / 255.
    return (images.float() * (1 / 255) - 0.5) / 0.5


def in_cache(z: Tensor) -> Sequence[Tensor]:
    """Parts of a batch that a CPU works on one after the other, so that what it writes in between stays in its cache.

    Whole batches go through memory, and get it anew from the system each time: three to eight times slower. Elsewhere
    the batch is one part.
    """
    rows = max(1, CACHED_VALUES // z[:1].numel()) if z.device.type == "cpu" and len(z) else max(1, len(z))
    return z.split(rows)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0 ... 255: round half to even of (x + 1) / 2 * 255, clipped (official PyTorch evaluation).

    The JAX evaluation truncates 127.5 x + 128 instead; they differ only where a value falls on k + 1/2.

    Args:
        images: (..., C, H, W) float.

    Returns:
        uint8 of the same shape.
    """
    return to_levels(images).round().to(torch.uint8)


def to_levels(images: Tensor) -> Tensor:
    """[-1, 1] of any shape to grey levels in [0, 255] before they are rounded, clipped."""
    return ((images + 1) / 2 * 255).clamp(0, 255)
