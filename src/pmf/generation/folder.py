"""Image i of a set is a function of (weights, seed, i): noise, labels, folders of PNGs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from pmf.config.sections import Config
from pmf.data.codec import to_uint8
from pmf.data.image_files import is_hidden
from pmf.distributed.world import World
from pmf.errors import NotFiniteError, UserError
from pmf.files import RIGHTS, read_object, writing
from pmf.flow.objective import create_objective
from pmf.generation.pictures import contact_sheet, save_png
from pmf.generation.plan import ImageBatch, SamplingPlan, image_noise
from pmf.net.interface import Network

NUM_ENCODERS = 4


def sample_images(
    network: Network, config: Config, plan: SamplingPlan, indices: Sequence[int], device: torch.device
) -> Tensor:
    """Images ``indices`` of a plan.

    Returns:
        (len(indices), C, H, W) uint8 on ``device``.

    Raises:
        NotFiniteError: naming the first image that holds NaN or infinity, which would become black or white pixels.
    """
    data = config.data
    objective = create_objective(config.objective, num_classes=data.num_classes)
    noise = image_noise(plan.seed, indices, (data.channels, data.image_size, data.image_size), objective.noise_scale)
    images = objective.generate(
        network,
        noise.to(device),
        torch.tensor([plan.label(index) for index in indices], device=device),
        omega=plan.omega,
        interval=plan.interval,
        num_steps=plan.num_steps,
    )
    wrong = (~images.isfinite()).flatten(1).sum(1).tolist()
    for index, count in zip(indices, wrong, strict=True):
        if count:
            raise NotFiniteError(
                f"image {index} (class {plan.label(index)}) of {plan.weights}: {count} of its {images[0].numel()} "
                "values are not finite; choose an older checkpoint or another omega"
            )
    return to_uint8(images)


def _sample_together(
    network: Network, config: Config, plan: SamplingPlan, indices: Sequence[int], world: World
) -> Tensor:
    """:func:`sample_images` on every rank, for any number of indices; an image that is not finite ends all ranks."""
    data = config.data
    images = torch.empty((0, data.channels, data.image_size, data.image_size), dtype=torch.uint8)
    problem = None
    if indices:
        try:
            images = sample_images(network, config, plan, indices, world.device)
        except NotFiniteError as error:
            problem = str(error)
    for found in world.gather(problem):
        if found:
            raise NotFiniteError(found)
    return images


def write_image_folder(
    network: Network, config: Config, plan: SamplingPlan, folder: Path, world: World
) -> Iterator[int]:
    """Write ``000000.png`` ... and, when all are there, ``labels.csv``.

    Images that an interrupted call of the same plan left are kept. PNGs are encoded in threads while the next batch is
    generated.

    Yields:
        How many images of this rank the batch settles; equally often on every rank.

    Raises:
        UserError: the folder holds something other than (part of) this plan, or an image is not finite.
    """
    world.ask_main(lambda: _claim_folder(folder, plan))
    with ThreadPoolExecutor(NUM_ENCODERS) as pool:
        written: list[Future[None]] = []
        for indices in own_batches(plan.num_images, config.sampling.batch_size, world):
            missing = {index for index in indices if not (folder / _file_name(index)).is_file()}
            images = _sample_together(network, config, plan, indices if missing else (), world).cpu()
            if missing:
                _wait(written)  # of the batch before: bounds the memory, and passes on what went wrong
                written = [
                    pool.submit(save_png, image, folder / _file_name(index))
                    for index, image in zip(indices, images, strict=True)
                    if index in missing
                ]
            yield len(indices)
        _wait(written)
    world.barrier()
    world.ask_main(lambda: _write_labels(folder, plan))


def own_batches(num_images: int, batch_size: int, world: World) -> Iterator[range]:
    """Indices of this rank's batches: as many on every rank, so the last one may be empty.

    Batch k is images k B ... (k + 1) B - 1, whoever makes it, so that not even the last bit of an image depends on the
    number of ranks or on an interruption. Rank r makes batches r, r + W, ...
    """
    offset = world.rank * batch_size
    for start in range(offset, num_images + offset, world.size * batch_size):
        yield range(start, min(start + batch_size, num_images))


def _wait(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def generate_batches(network: Network, config: Config, plan: SamplingPlan, world: World) -> Iterator[ImageBatch]:
    """This process's share of a plan's images, as :func:`write_image_folder` would write them; see own_batches."""
    for indices in own_batches(plan.num_images, config.sampling.batch_size, world):
        yield ImageBatch(_sample_together(network, config, plan, indices, world), list(indices))


def class_grid(network: Network, config: Config, plan: SamplingPlan, device: torch.device) -> Tensor:
    """One row per class, for ten classes spread over the plan's, of ten images each: one (C, H, W) uint8 picture."""
    classes = plan.labels[:: max(len(plan.labels) // 10, 1)][:10]
    plan = replace(plan, labels=classes)
    indices = [column * len(classes) + row for row in range(len(classes)) for column in range(10)]
    batch_size = config.sampling.batch_size
    batches = [
        sample_images(network, config, plan, indices[start : start + batch_size], device)
        for start in range(0, len(indices), batch_size)
    ]
    return contact_sheet(torch.cat(batches), columns=10)


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _claim_folder(folder: Path, plan: SamplingPlan) -> None:
    """Note the plan in the folder, or check that the folder is this plan's."""
    record = folder / "sampling.json"
    wanted = json.loads(json.dumps(asdict(plan)))
    if record.exists():
        found = read_object(record, "delete the folder or choose another")
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            key = different[0]
            raise UserError(
                f"{folder}: holds images of another run of sample ({key} is {found.get(key)} there, {wanted[key]} "
                "here); delete the folder or choose another"
            )
    elif folder.is_dir() and not all(is_hidden(path.name) for path in folder.iterdir()):
        raise UserError(f"{folder}: is not empty and holds no sampling.json; choose another folder")
    with writing(str(folder), "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".sampling.json"
        temporary.write_text(json.dumps(wanted, indent=1))
        temporary.replace(record)


def _write_labels(folder: Path, plan: SamplingPlan) -> None:
    path = folder / "labels.csv"
    with writing(str(path), RIGHTS, again=True), path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([_file_name(index), plan.label(index)] for index in range(plan.num_images))
