"""The table of networks. Reading it needs no torch, so that configs are checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pmf.errors import CrossFieldError, UserError
from pmf.tables import resolve

if TYPE_CHECKING:
    import torch

    from pmf.net.base import BaseNetwork


class NetworkSize:
    """A row of the table: an architecture, and the numbers that make a network of it.

    Attributes:
        architecture: a subclass of ``pmf.net.base.BaseNetwork``, or where it is defined as "package.module:Class".
        patch_size: side of a patch; it divides the side of the network's space (pixels, or latents).
        numbers: by name, what else the constructor takes; see there for the meaning of each.
    """

    def __init__(self, architecture: str | type[BaseNetwork], *, patch_size: int, **numbers: float) -> None:
        self.architecture = architecture
        self.patch_size = patch_size
        self.numbers: Mapping[str, float] = numbers


PIXEL_TRANSFORMER = "pmf.net.pixel_transformer:PixelTransformer"
IMF_TRANSFORMER = "pmf.net.imf_transformer:ImfTransformer"
DIFFUSION_TRANSFORMER = "pmf.net.diffusion_transformer:DiffusionTransformer"

# pMF. The hidden widths are int(8 / 3 width) as in the released weights; H's is rounded up to a multiple of 8.
_B = {"width": 768, "depth": 16, "head_depth": 8, "num_heads": 12, "mlp_width": 2048, "bottleneck": 128}
_L = {"width": 1024, "depth": 32, "head_depth": 8, "num_heads": 16, "mlp_width": 2730, "bottleneck": 128}
_H = {"width": 1280, "depth": 48, "head_depth": 8, "num_heads": 16, "mlp_width": 3416, "bottleneck": 256}
# Ours, for small images: no paper trains it, and none trains _B with patches of 4.
_S = {"width": 384, "depth": 12, "head_depth": 6, "num_heads": 6, "mlp_width": 1024, "bottleneck": 128}
# iMF; mlp_width is int(8 / 3 width), which is the default.
_IMF = {
    "b": {"width": 768, "depth": 12, "num_heads": 12},
    "m": {"width": 768, "depth": 24, "num_heads": 12},
    "l": {"width": 1024, "depth": 32, "num_heads": 16},
    "xl": {"width": 1024, "depth": 48, "num_heads": 16},
}
# MeanFlow's diffusion transformers, each with patches of 2, 4 and 8.
_DIT = {
    "s": {"width": 384, "depth": 12, "num_heads": 6},
    "b": {"width": 768, "depth": 12, "num_heads": 12},
    "m": {"width": 1024, "depth": 16, "num_heads": 16},
    "l": {"width": 1024, "depth": 24, "num_heads": 16},
    "xl": {"width": 1152, "depth": 28, "num_heads": 16},
}
# For the embedded digits, tests and laptops.
_TINY = {"width": 64, "num_heads": 4, "mlp_width": 170, "bottleneck": 128}

SIZES: dict[str, NetworkSize] = {
    "pmf_b_16": NetworkSize(PIXEL_TRANSFORMER, patch_size=16, **_B),
    "pmf_b_32": NetworkSize(PIXEL_TRANSFORMER, patch_size=32, **_B),
    "pmf_l_16": NetworkSize(PIXEL_TRANSFORMER, patch_size=16, **_L),
    "pmf_l_32": NetworkSize(PIXEL_TRANSFORMER, patch_size=32, **_L),
    "pmf_h_16": NetworkSize(PIXEL_TRANSFORMER, patch_size=16, **_H),
    "pmf_h_32": NetworkSize(PIXEL_TRANSFORMER, patch_size=32, **_H),
    "pmf_s_4": NetworkSize(PIXEL_TRANSFORMER, patch_size=4, **_S),
    "pmf_b_4": NetworkSize(PIXEL_TRANSFORMER, patch_size=4, **_B),
    "pmf_tiny_2": NetworkSize(PIXEL_TRANSFORMER, patch_size=2, depth=4, head_depth=2, **_TINY),
    "pmf_tiny_16": NetworkSize(PIXEL_TRANSFORMER, patch_size=16, depth=2, head_depth=1, **_TINY),
    **{f"imf_{size}_2": NetworkSize(IMF_TRANSFORMER, patch_size=2, head_depth=8, **_IMF[size]) for size in _IMF},
    "imf_tiny_2": NetworkSize(IMF_TRANSFORMER, patch_size=2, width=64, depth=4, head_depth=2, num_heads=4),
    **{
        f"dit_{size}_{patch}": NetworkSize(DIFFUSION_TRANSFORMER, patch_size=patch, **_DIT[size])
        for size in _DIT
        for patch in (2, 4, 8)
    },
    "dit_tiny_2": NetworkSize(DIFFUSION_TRANSFORMER, patch_size=2, width=64, depth=4, num_heads=4),
}
"""By ``model.name``. A new size is one row; it may also be added while a program runs."""


def find_size(name: str, side: int, downsampling: int = 1) -> NetworkSize:
    """The row of a name, for a space of this side.

    Args:
        side: of the network's space (pixels, or latents).
        downsampling: how many times that the images' side is, which is what the user can change.

    Raises:
        CrossFieldError: the name is not in the table, or the patch size does not divide the side.
    """
    size = _find_row(name)
    if side % size.patch_size:
        unit = size.patch_size * downsampling
        lower = side // size.patch_size * unit
        nearest = " or ".join(str(image_size) for image_size in (lower, lower + unit) if image_size)
        latents = f", of which latents have a side of {side}" if downsampling > 1 else ""
        raise CrossFieldError(
            "data.image_size",
            f"is {side * downsampling}{latents}, not a multiple of {name}'s patch size {size.patch_size}; "
            f"use {nearest}, or a model with another patch size",
        )
    return size


def _find_row(name: str) -> NetworkSize:
    if name not in SIZES:
        raise CrossFieldError("model.name", f"is '{name}'; choose one of: {', '.join(SIZES)}")
    return SIZES[name]


def find_architecture(name: str) -> type[BaseNetwork]:
    """The class of the networks of a name; imports torch.

    Raises:
        UserError: the name is not in the table.
    """
    try:
        return resolve(_find_row(name).architecture)
    except CrossFieldError as error:
        raise UserError(str(error)) from None


def create_network(
    name: str,
    *,
    image_size: int,
    num_classes: int,
    channels: int = 3,
    downsampling: int = 1,
    inference: bool = False,
    generator: torch.Generator | None = None,
) -> BaseNetwork:
    """Build a network by name.

    Args:
        image_size: side of the network's space (pixels, or latents).
        num_classes: number of labels without the null label.
        channels: channels of the network's space.
        downsampling: how many times ``image_size`` the images' side is; for the error's words only.
        inference: leave out what only training uses.
        generator: source of the initial weights; None is torch's global one.

    Raises:
        UserError: the name is not in the table, or the patch size does not divide the image size.
    """
    try:
        size = find_size(name, image_size, downsampling)
    except CrossFieldError as error:
        raise UserError(str(error)) from None
    return find_architecture(name)(
        image_size=image_size,
        patch_size=size.patch_size,
        channels=channels,
        num_classes=num_classes,
        inference=inference,
        generator=generator,
        **size.numbers,
    )
