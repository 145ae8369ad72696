"""What calls ask for, checked, and the form in which they get it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from pmf.config.sampling_options import Use, options_for
from pmf.config.sections import Config, sampling_section
from pmf.errors import UserError
from pmf.generation.command import with_sampling


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
