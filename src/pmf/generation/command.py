"""The verb ``eval.py sample``: from a checkpoint to images and a folder of PNGs, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pmf.checkpoint.finding import find_weights
from pmf.checkpoint.official.layouts import load_official
from pmf.checkpoint.saved_weights import SavedWeights, load_strictly, read_weights
from pmf.config.sections import Config, as_plain
from pmf.config.yaml_file import config_from_plain, load_config
from pmf.data.autoencoder import NoAutoencoderError
from pmf.data.codec import create_codec
from pmf.data.options import network_shape, pixel_space
from pmf.distributed.world import World, join_world, set_float32_precision
from pmf.errors import UserError
from pmf.generation.folder import write_image_folder
from pmf.generation.images import ImageMaker, inference_network
from pmf.generation.plan import SamplingPlan, plan_samples
from pmf.generation.sampling_request import SamplingRequest


@dataclass(frozen=True, kw_only=True)
class PlannedImages:
    """Images of a checkpoint, all settled and not yet made.

    Attributes:
        config: the checkpoint's, with the request's sampling options and autoencoder.
        saved: where the weights come from.
    """

    maker: ImageMaker
    plan: SamplingPlan
    config: Config
    saved: SavedWeights


def sample_folder(request: SamplingRequest, output: Path) -> None:
    """Write images 0 ... num_images - 1 and their labels; an interrupted folder is completed.

    Raises:
        UserError: anything about the request or the checkpoint that does not fit.
    """
    world = join_world()
    planned = plan_images(request, world)
    write_images(planned, output, world)
    if world.is_main:
        print(f"{request.num_images} images ({planned.plan.weights}) in {output}")


def plan_images(request: SamplingRequest, world: World) -> PlannedImages:
    """Load the checkpoint and plan the request's images; called by all processes.

    Raises:
        UserError: anything about the request or the checkpoint that does not fit.
    """
    return next(plan_for_averages(request, [request.ema], world))


def plan_for_averages(
    request: SamplingRequest, averages: Sequence[str | None], world: World
) -> Iterator[PlannedImages]:
    """The request's images with each average in turn, all from one checkpoint; called by all processes.

    They have one network: its weights are those of the average that came last.

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
        config = _with_overrides(saved.config, request)
        if network is None:
            _require_decoder(config, world)
            set_float32_precision(tf32=saved.config.training.tf32)
            network = inference_network(saved.config, saved.weights, world.device, where)
        else:
            load_strictly(network, saved.weights, where)
        maker = ImageMaker(network, config, world.device)
        yield PlannedImages(maker=maker, plan=_plan(config, saved, request), config=config, saved=saved)


def with_overrides(planned: PlannedImages, request: SamplingRequest) -> PlannedImages:
    """The same weights with the sampling options of another request.

    Raises:
        UserError: options or labels that cannot be.
    """
    config = _with_overrides(planned.saved.config, request)
    return replace(planned, plan=_plan(config, planned.saved, request), config=config)


def _plan(config: Config, saved: SavedWeights, request: SamplingRequest) -> SamplingPlan:
    num_classes = config.data.num_classes
    in_a_row = _block_length(request.num_images, num_classes) if request.labels == "blocks" else 1
    return plan_samples(
        config,
        num_images=request.num_images,
        seed=request.seed,
        weights=saved.source,
        labels=_parse_labels(request.labels, num_classes),
        images_in_a_row=in_a_row,
    )


def _read_each(request: SamplingRequest, averages: Sequence[str | None], world: World) -> Iterator[SavedWeights]:
    if request.recipe is not None:
        config = load_config(request.recipe)
        for average in averages:
            yield load_official(request.checkpoint, config, average, key=request.key, world=world)
        return
    for file in world.ask_main(lambda: find_weights(request.checkpoint, averages)):
        yield read_weights(file)


def write_images(planned: PlannedImages, output: Path, world: World) -> None:
    """Write or complete the folder of the images, with a progress bar; called by all processes.

    Raises:
        UserError: the folder holds something other than (part of) this plan.
    """
    num_images = planned.plan.num_images
    with tqdm(total=num_images, unit="image", disable=not world.is_main) as bar:
        for count in write_image_folder(planned.maker, planned.plan, output, world):
            bar.update(min(count * world.size, num_images - bar.n))  # the others are about as far


def with_sampling(config: Config, options: Mapping[str, Any], where: str) -> Config:
    """The config with other values of its sampling section; ``where`` says in errors where they were given.

    Raises:
        UserError: one cannot be.
    """
    values = as_plain(config)
    values["sampling"] |= options
    return config_from_plain(values, where)


def _with_overrides(config: Config, request: SamplingRequest) -> Config:
    values = as_plain(with_sampling(config, request.overrides, "command line"))
    if request.autoencoder is not None:
        if network_shape(config.data) == pixel_space(config.data):
            raise UserError(
                f"--autoencoder {request.autoencoder}: the checkpoint's data.kind is {config.data.kind}, which has no "
                "autoencoder; leave it out"
            )
        values["data"]["autoencoder"] = request.autoencoder
    return config_from_plain(values, "command line")


def _require_decoder(config: Config, world: World) -> None:
    """Read what decodes images before anything is written: all ranks agree on what is wrong, and one downloads."""

    def read() -> None:
        try:
            _ = create_codec(config.data).record
        except NoAutoencoderError as error:
            raise UserError(f"{error}, with --autoencoder") from None

    world.main_first(read)


def _block_length(num_images: int, num_classes: int) -> int:
    """Images of each class, where all have as many."""
    if num_images % num_classes:
        lower = num_images // num_classes * num_classes
        nearest = " or ".join(str(number) for number in (lower, lower + num_classes) if number)
        raise UserError(
            f"--labels blocks: --num-images is {num_images}, not a multiple of the {num_classes} classes; "
            f"give {nearest}"
        )
    return num_images // num_classes


def _parse_labels(text: str, num_classes: int) -> tuple[int, ...]:
    if text in ("all", "blocks"):
        return tuple(range(num_classes))
    try:
        labels = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--labels {text}: give classes separated by commas, all or blocks") from None
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise UserError(f"--labels {text}: {wrong[0]} is not in 0 ... {num_classes - 1}")
    return labels
