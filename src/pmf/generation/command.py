"""From a checkpoint to a folder of PNGs, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pmf.checkpoint.finding import find_weights
from pmf.checkpoint.official.layouts import load_official
from pmf.checkpoint.saved_weights import SavedWeights, load_strictly, read_weights
from pmf.config.sections import Config, as_plain
from pmf.config.yaml_file import config_from_plain, load_config
from pmf.distributed.world import World, join_world, set_float32_precision
from pmf.errors import UserError
from pmf.generation.folder import write_image_folder
from pmf.generation.plan import SamplingPlan, plan_samples
from pmf.net.sizes import create_network


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What a command was asked to generate.

    Attributes:
        checkpoint: run folder, checkpoint folder or ``.safetensors`` file; with a recipe, an official checkpoint.
        recipe: YAML of the model that an official checkpoint holds.
        labels: ``all`` or comma-separated classes, cycled through.
        ema: which average; None is the config's choice.
        overrides: values for the config's sampling section; None keeps the config's.
        key: which set of weights of a PyTorch file that holds several.
    """

    checkpoint: Path
    recipe: Path | None
    num_images: int
    labels: str
    seed: int
    ema: str | None
    overrides: Mapping[str, Any]
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A network, ready to generate the images of a plan; ``saved`` is where its weights come from."""

    network: nn.Module
    config: Config
    plan: SamplingPlan
    saved: SavedWeights


def sample_folder(request: SamplingRequest, output: Path) -> None:
    """Write images 0 ... num_images - 1 and their labels; an interrupted folder is completed.

    Raises:
        UserError: anything about the request or the checkpoint that does not fit.
    """
    world = join_world()
    sampler = open_sampler(request, world)
    write_samples(sampler, output, world)
    if world.is_main:
        print(f"{request.num_images} images ({sampler.plan.weights}) in {output}")


def open_sampler(request: SamplingRequest, world: World) -> Sampler:
    """Load the checkpoint and plan the images; called by all processes.

    Raises:
        UserError: anything about the request or the checkpoint that does not fit.
    """
    return next(open_samplers(request, [request.ema], world))


def open_samplers(request: SamplingRequest, averages: Sequence[str | None], world: World) -> Iterator[Sampler]:
    """A sampler of each average in turn, all from one checkpoint; called by all processes.

    They have one network: its weights are those of the sampler that came last.

    Args:
        averages: take the place of ``request.ema``.

    Raises:
        UserError: anything about the request or the checkpoint that does not fit.
    """
    if request.num_images < 1:
        raise UserError(f"--num-images is {request.num_images}; ask for at least 1")
    if request.seed < 0:
        raise UserError(f"--seed is {request.seed}; give 0 or more")
    if not request.checkpoint.exists():
        raise UserError(f"--checkpoint {request.checkpoint}: there is no such file or folder")
    if request.recipe is None and request.key is not None:
        raise UserError(f"--key {request.key}: is for PyTorch files, which are read with --config; leave it out")
    network = None
    for saved in _read_each(request, averages, world):
        where = f"{request.checkpoint}: {saved.source}"
        if network is None:
            set_float32_precision(tf32=saved.config.training.tf32)
            network = inference_network(saved.config, saved.weights, world.device, where)
        else:
            load_strictly(network, saved.weights, where)
        yield plan_sampler(network, saved, request)


def plan_sampler(network: nn.Module, saved: SavedWeights, request: SamplingRequest) -> Sampler:
    """A sampler with the request's settings of a network that holds the saved weights.

    Raises:
        UserError: settings or labels that cannot be.
    """
    config = _with_overrides(saved.config, request.overrides)
    classes = _parse_labels(request.labels, config.data.num_classes)
    plan = plan_samples(config, num_images=request.num_images, seed=request.seed, weights=saved.source, labels=classes)
    return Sampler(network=network, config=config, plan=plan, saved=saved)


def _read_each(request: SamplingRequest, averages: Sequence[str | None], world: World) -> Iterator[SavedWeights]:
    if request.recipe is not None:
        config = load_config(request.recipe)
        for average in averages:
            yield load_official(request.checkpoint, config, average, key=request.key, world=world)
        return
    for file in world.ask_main(lambda: find_weights(request.checkpoint, averages)):
        yield read_weights(file)


def write_samples(sampler: Sampler, output: Path, world: World) -> None:
    """Write or complete the folder of a sampler's images, with a progress bar; called by all processes.

    Raises:
        UserError: the folder holds something other than (part of) this plan.
    """
    num_images = sampler.plan.num_images
    with tqdm(total=num_images, unit="image", disable=not world.is_main) as bar:
        for count in write_image_folder(sampler.network, sampler.config, sampler.plan, output, world):
            bar.update(min(count * world.size, num_images - bar.n))  # the others are about as far


def inference_network(config: Config, weights: Mapping[str, Tensor], device: torch.device, where: str) -> nn.Module:
    """A network without v head, holding ``weights``; ``where`` names their source in errors.

    Raises:
        UserError: the weights are those of another network, or not finite.
    """
    network = create_network(
        config.model.name,
        image_size=config.data.image_size,
        num_classes=config.data.num_classes,
        channels=config.data.channels,
        inference=True,
    )
    load_strictly(network, weights, where)
    return network.to(device).eval()


def _with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    values = as_plain(config)
    values["sampling"] |= {key: value for key, value in overrides.items() if value is not None}
    return config_from_plain(values, "command line")


def _parse_labels(text: str, num_classes: int) -> tuple[int, ...]:
    if text == "all":
        return tuple(range(num_classes))
    try:
        labels = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--labels {text}: give classes separated by commas, or all") from None
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise UserError(f"--labels {text}: {wrong[0]} is not in 0 ... {num_classes - 1}")
    return labels
