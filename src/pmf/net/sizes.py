"""The table of networks. A new size is one row. Reading it needs no torch, so that configs are checked against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pmf.errors import CrossFieldError, UserError

if TYPE_CHECKING:
    import torch

    from pmf.net.pixel_transformer import PixelTransformer


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """Shape of a :class:`PixelTransformer`; see its constructor for the meaning of each number."""

    width: int
    depth: int
    head_depth: int = 8
    num_heads: int
    mlp_width: int
    patch_size: int
    bottleneck: int = 128


# The SwiGLU widths are int(8 / 3 width) as in the released weights; H's is rounded up to a multiple of 8 (3416).
SIZES: dict[str, NetworkSize] = {
    "pmf_b_16": NetworkSize(width=768, depth=16, num_heads=12, mlp_width=2048, patch_size=16),
    "pmf_b_32": NetworkSize(width=768, depth=16, num_heads=12, mlp_width=2048, patch_size=32),
    "pmf_l_16": NetworkSize(width=1024, depth=32, num_heads=16, mlp_width=2730, patch_size=16),
    "pmf_l_32": NetworkSize(width=1024, depth=32, num_heads=16, mlp_width=2730, patch_size=32),
    "pmf_h_16": NetworkSize(width=1280, depth=48, num_heads=16, mlp_width=3416, patch_size=16, bottleneck=256),
    "pmf_h_32": NetworkSize(width=1280, depth=48, num_heads=16, mlp_width=3416, patch_size=32, bottleneck=256),
    # For the embedded digits, tests and laptops.
    "pmf_tiny_2": NetworkSize(width=64, depth=4, head_depth=2, num_heads=4, mlp_width=170, patch_size=2),
    "pmf_tiny_16": NetworkSize(width=64, depth=2, head_depth=1, num_heads=4, mlp_width=170, patch_size=16),
}


def find_size(name: str, image_size: int) -> NetworkSize:
    """The row of a name, for images of this side in pixels.

    Raises:
        CrossFieldError: the name is not in the table, or the patch size does not divide the image size.
    """
    if name not in SIZES:
        raise CrossFieldError("model.name", f"is '{name}'; choose one of: {', '.join(SIZES)}")
    size = SIZES[name]
    if image_size % size.patch_size:
        lower = image_size // size.patch_size * size.patch_size
        nearest = " or ".join(str(side) for side in (lower, lower + size.patch_size) if side)
        raise CrossFieldError(
            "data.image_size",
            f"is {image_size}, not a multiple of {name}'s patch size {size.patch_size}; "
            f"use {nearest}, or a model with another patch size",
        )
    return size


def create_network(
    name: str,
    *,
    image_size: int,
    num_classes: int,
    channels: int = 3,
    inference: bool = False,
    generator: torch.Generator | None = None,
) -> PixelTransformer:
    """Build a network by name.

    Raises:
        UserError: the name is not in the table, or the patch size does not divide the image size.
    """
    from pmf.net.pixel_transformer import PixelTransformer

    try:
        size = find_size(name, image_size)
    except CrossFieldError as error:
        raise UserError(str(error)) from None
    return PixelTransformer(
        image_size=image_size,
        patch_size=size.patch_size,
        channels=channels,
        num_classes=num_classes,
        width=size.width,
        depth=size.depth,
        head_depth=size.head_depth,
        num_heads=size.num_heads,
        mlp_width=size.mlp_width,
        bottleneck=size.bottleneck,
        inference=inference,
        generator=generator,
    )
