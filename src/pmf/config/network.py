"""The network of a config. Needs no torch until it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmf.config.sections import Config
from pmf.data.options import network_shape
from pmf.net.sizes import create_network

if TYPE_CHECKING:
    import torch

    from pmf.net.base import BaseNetwork


def network_of(config: Config, *, inference: bool = False, generator: torch.Generator | None = None) -> BaseNetwork:
    """The network that ``model.name`` names, for the space that the data set has, with new weights.

    Args:
        inference: leave out what only training uses.
        generator: source of the initial weights; None is torch's global one.

    Raises:
        UserError: the name is not in the table, or the patch size does not divide the side.
    """
    channels, side, _ = network_shape(config.data)
    return create_network(
        config.model.name,
        image_size=side,
        num_classes=config.data.num_classes,
        channels=channels,
        downsampling=config.data.image_size // side,
        inference=inference,
        generator=generator,
    )
