"""The feature networks that have names of their own; everything else is a user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pmf.distributed.world import World
from pmf.errors import UserError
from pmf.evaluation.digit_features import IMAGE_SHAPE, fit_digit_features
from pmf.evaluation.extractors import Extractor, ImageShape, load_custom


def open_extractor(name: str | None, weights: Path | None, shape: ImageShape, world: World) -> Extractor:
    """A feature network on this process's device; called by all processes. Leaves the global random state alone.

    Args:
        name: a row of ``EXTRACTORS``, ``package.module:callable`` or a TorchScript file; None is ``digits`` for images
            of the digits' shape and ``inception`` for all others.
        weights: file of the Inception weights, see :func:`pmf.evaluation.inception.load_inception`.
        shape: of the images: channels, height, width.

    Raises:
        UserError: no such extractor or no weights.
    """
    chosen = name or ("digits" if shape == IMAGE_SHAPE else "inception")
    if weights is not None and chosen != "inception":
        raise UserError(f"--extractor-weights {weights}: is for --extractor inception; leave it out for {chosen}")
    with torch.random.fork_rng(devices=[]):  # networks are initialised before their weights are loaded
        if chosen in EXTRACTORS:
            return EXTRACTORS[chosen](weights, world)
        return load_custom(chosen, world)


def _inception(weights: Path | None, world: World) -> Extractor:
    from pmf.evaluation.inception import load_inception  # only here: importing torch-fidelity takes seconds

    return load_inception(weights, world)


EXTRACTORS: dict[str, Callable[[Path | None, World], Extractor]] = {
    "inception": _inception,
    "digits": lambda _, world: fit_digit_features(world.device),
}
