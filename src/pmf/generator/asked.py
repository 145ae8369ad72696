"""What calls ask for, checked, and the form in which they get it."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from PIL import Image
from torch import Tensor

from pmf.config.sampling_options import Use, options_for
from pmf.config.sections import Config, sampling_section
from pmf.errors import UserError
from pmf.generation.command import with_sampling

Label = str | SupportsIndex
"""A class by its number or by its name."""


def one_or_several(labels: Label | Iterable[Label]) -> list[Label]:
    """Labels as a list. What stands for a whole number is one label, though an array of no dimension can be iterated by
    its type."""
    if isinstance(labels, str):
        return [labels]
    with contextlib.suppress(TypeError):
        return [operator.index(labels)]  # type: ignore[arg-type]
    try:
        return list(labels)  # type: ignore[arg-type]
    except TypeError:
        return [labels]  # type: ignore[list-item]


def whole(name: str, value: SupportsIndex, least: int, advice: str) -> int:
    """A whole number as an int.

    Args:
        name: of the call and of what was given, for errors.
        least: smallest that can be.
        advice: for what is smaller.

    Raises:
        UserError: it is none, or smaller.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name} is {value!r}; give a whole number") from None
    if number < least:
        raise UserError(f"{name} is {number}; {advice}")
    return number


def with_options(config: Config, what: str, steps: int | None, options: Mapping[str, Any]) -> Config:
    """The config with other sampling options.

    Args:
        what: names the call in errors.
        steps: in place of ``num_steps``; None leaves that alone.
        options: by the names of the sampling section.

    Raises:
        UserError: there is no such option, or its value cannot be.
    """
    known = options_for(sampling_section(), Use.IMAGES, Use.BATCHES)
    if "ema" in options:
        raise UserError(f"{what}: ema is chosen when weights are loaded: pmf.load(..., ema=...)")
    if wrong := [name for name in options if name not in known]:
        raise UserError(f"{what}: {wrong[0]} is no sampling option; there are: {', '.join(known)}")
    if steps is not None and "num_steps" in options:
        raise UserError(f"{what}: steps and num_steps are the same option; give one")
    given = dict(options) if steps is None else {**options, "num_steps": steps}
    return with_sampling(config, given, what)


def check_output(output: str) -> None:
    """Whether images can be given in this form.

    Raises:
        UserError: they cannot.
    """
    if output not in ("pil", "tensor"):
        raise UserError(f"output is {output!r}; give pil or tensor")


def as_output(images: Tensor, output: str) -> list[Image.Image] | Tensor:
    """(N, C, H, W) uint8 on the CPU, or as PIL images: grey of one channel, RGB of three."""
    if output == "tensor":
        return images
    return [Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()) for image in images]
