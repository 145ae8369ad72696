"""Between bytes and the network's space."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape to float32 in [-1, 1], on the tensor's device, with the papers' rounding."""
    # (x / 255 - 0.5) / 0.5, where XLA multiplies by the float32 nearest to 1 / 255.
    return (images.float() * (1 / 255) - 0.5) / 0.5


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0 ... 255: round half to even of (x + 1) / 2 * 255, clipped (official PyTorch evaluation).

    The JAX evaluation truncates 127.5 x + 128 instead; they differ only where a value falls on k + 1/2.

    Args:
        images: (..., C, H, W) float.

    Returns:
        uint8 of the same shape.
    """
    return ((images + 1) / 2 * 255).clamp(0, 255).round().to(torch.uint8)
