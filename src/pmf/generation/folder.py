"""A folder with the images of a plan as PNGs: written by all ranks, completed after an interruption."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from pmf.config.sections import sampling_section
from pmf.data.codec import ROUNDING
from pmf.data.image_files import is_hidden
from pmf.distributed.world import World
from pmf.errors import NotFiniteError, UserError
from pmf.files import RIGHTS, complete_or_absent, printable, read_object, write_json, writing
from pmf.generation.beside import threads_beside
from pmf.generation.images import ImageMaker, own_batches
from pmf.generation.pictures import save_png
from pmf.generation.plan import SamplingPlan

BATCHES_ENCODED = 2
"""At the same time, at most: bounds the memory, and passes on what went wrong."""
PLACES = ("autoencoder",)
"""What a record names and images do not depend on: an autoencoder may have moved, the hash of its weights counts."""


def write_image_folder(maker: ImageMaker, plan: SamplingPlan, folder: Path, world: World) -> Iterator[int]:
    """Write ``000000.png`` ... and, when all are there, ``labels.csv``.

    Images that an interrupted call of the same plan left are kept. PNGs are encoded in threads while the next batches
    are generated.

    Yields:
        How many images of this rank the batch settles; equally often on every rank.

    Raises:
        UserError: the folder holds something other than (part of) this plan, or an image is not finite.
    """
    world.ask_main(lambda: _claim_folder(folder, plan))
    there = {path.name for path in folder.iterdir() if path.is_file()}
    own = list(own_batches(plan.num_images, maker.batch_size, world))
    missing = [[index for index in indices if _file_name(index) not in there] for indices in own]
    asked = [indices if absent else range(0) for indices, absent in zip(own, missing, strict=True)]
    with threads_beside(maker.device, world) as pool:
        made = maker.batches(plan, world, asked, on_host=True, pool=pool)
        encoding: deque[list[Future[None]]] = deque()
        try:
            for indices, absent, batch in zip(own, missing, made, strict=True):
                if len(encoding) == BATCHES_ENCODED:
                    _wait(encoding.popleft())
                images = dict(zip(batch.indices, batch.images))
                encoding.append([pool.submit(save_png, images[index], folder / _file_name(index)) for index in absent])
                yield len(indices)
        except NotFiniteError:  # what came before it is good
            for futures in encoding:
                _wait(futures)
            raise
        for futures in encoding:
            _wait(futures)
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
