"""What a command line asks to generate: its flags, and the request that they make. Needs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmf.commands import path_text, to_path, whole_from
from pmf.config.command_line import takes_config
from pmf.config.sampling_flags import add_sampling_flags, check_sampling


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What a command was asked to generate.

    Attributes:
        checkpoint: run folder, checkpoint folder or ``.safetensors`` file; with a recipe, an official checkpoint.
        recipe: YAML of the model that an official checkpoint holds.
        labels: ``all`` or comma-separated classes, cycled through; or ``blocks``, all classes one after the other.
        ema: which average; None is the config's choice.
        overrides: values for the config's sampling section, besides ``ema``.
        key: which set of weights of a PyTorch file that holds several.
        autoencoder: takes the place of the config's ``data.autoencoder``; None leaves that.
    """

    checkpoint: Path
    recipe: Path | None
    num_images: int
    labels: str
    seed: int
    ema: str | None
    overrides: Mapping[str, Any]
    key: str | None = None
    autoencoder: str | None = None


def add_generation_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """How a checkpoint's images are generated; ``several``: with several values of each sampling option."""
    takes_config(
        parser.add_argument(
            "--config", type=to_path, help="recipe that an official checkpoint was trained with, e.g. pmf_b_16"
        )
    )
    parser.add_argument(
        "--key", help="which set of weights of a PyTorch file that holds several, e.g. ema or state.model"
    )
    parser.add_argument(
        "--labels",
        type=_class_list,
        default="all",
        help="comma-separated classes to cycle through, or all; or blocks: all, each num-images / classes times in a "
        "row, as in the official PyTorch evaluations",
    )
    parser.add_argument("--seed", type=whole_from(0), default=0, help="default: 0; that of --noise official is 42")
    parser.add_argument(
        "--autoencoder",
        type=path_text,
        metavar="NAME_OR_FOLDER",
        help="of latents: the AutoencoderKL that decodes them, by name on the Hugging Face hub or as a local folder; "
        "default: the config's",
    )
    add_sampling_flags(parser, several=several)


def generation_request(arguments: argparse.Namespace, num_images: int, options: dict[str, Any]) -> SamplingRequest:
    """The images that the arguments of :func:`add_generation_flags` ask for, with these sampling options.

    Raises:
        UserError: an option's value cannot be.
    """
    overrides = {name: value for name, value in options.items() if name != "ema"}
    check_sampling(overrides)
    return SamplingRequest(
        checkpoint=arguments.checkpoint,
        recipe=arguments.config,
        num_images=num_images,
        labels=arguments.labels,
        seed=arguments.seed,
        ema=options.get("ema"),
        overrides=overrides,
        key=arguments.key,
        autoencoder=arguments.autoencoder,
    )


def _class_list(text: str) -> str:
    """``all``, ``blocks``, or classes with commas between; which there are is known with the checkpoint."""
    if text not in ("all", "blocks") and not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: give classes separated by commas, all or blocks")
    return text
