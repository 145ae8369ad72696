"""A folder with the images of a plan as PNGs: written by all ranks, completed after an interruption."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pmf.config.sections import sampling_section
from pmf.data.codec import ROUNDING
from pmf.data.image_files import is_hidden
from pmf.distributed.world import World
from pmf.errors import UserError
from pmf.files import RIGHTS, complete_or_absent, printable, read_object, write_json, writing
from pmf.generation.images import ImageMaker, own_batches
from pmf.generation.pictures import save_png
from pmf.generation.plan import SamplingPlan

NUM_ENCODERS = 4
PLACES = ("autoencoder",)
"""What a record names and images do not depend on: an autoencoder may have moved, the hash of its weights counts."""


def write_image_folder(maker: ImageMaker, plan: SamplingPlan, folder: Path, world: World) -> Iterator[int]:
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
        for indices in own_batches(plan.num_images, maker.batch_size, world):
            missing = {index for index in indices if not (folder / _file_name(index)).is_file()}
            images = maker.make_together(plan, indices if missing else (), world).cpu()
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


def _wait(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _claim_folder(folder: Path, plan: SamplingPlan) -> None:
    """Note the plan in the folder, or check that the folder is this plan's."""
    record = folder / "sampling.json"
    wanted = printable(plan.record())
    if record.exists():
        # What a record does not name did not exist when it was written: the images have its default.
        options = sampling_section().model_fields
        defaults = {name: options[name].default for name in plan.settings}
        defaults |= {"images_in_a_row": 1, "rounding": ROUNDING}
        found = printable(defaults | read_object(record, "delete the folder or choose another"))
        different = [key for key in wanted if key not in PLACES and found.get(key) != wanted[key]]
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
        write_json(record, wanted)


def _write_labels(folder: Path, plan: SamplingPlan) -> None:
    path = folder / "labels.csv"
    with (
        writing(str(path), RIGHTS, again=True),
        complete_or_absent(path) as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([_file_name(index), plan.label(index)] for index in range(plan.num_images))
