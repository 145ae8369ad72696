"""Sets of images that are measured: of a checkpoint, of a folder or an .npz, of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pmf.config.yaml_file import load_config
from pmf.data.image_files import LeftOut, list_deep, list_flat, scan_folder
from pmf.data.imagefolder import class_root
from pmf.data.options import DataConfig
from pmf.data.parquet_files import holds_parquet
from pmf.data.source import create_source
from pmf.distributed.world import World
from pmf.errors import UserError
from pmf.evaluation.digit_features import DIGITS
from pmf.evaluation.extractors import Extractor, ImageShape
from pmf.evaluation.image_sets import DataImages, FlatFolder, stream
from pmf.evaluation.meter import FidelityMeter, Measured
from pmf.evaluation.npz_images import ARRAY, NpzImages
from pmf.evaluation.origin import generated_origin
from pmf.files import read_object
from pmf.generation.command import PlannedImages, plan_images, write_images
from pmf.generation.plan import ImageBatch
from pmf.generation.sampling_request import SamplingRequest

READ_BATCH = 64
"""Images per call of the extractor, where they are read from disk."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A set of images, not yet read or generated.

    Attributes:
        batches: this process's share of the images.
        data: how images of a data set are prepared to be compared with these.
        origin: where they come from, for the record.
        warnings: what was found beside them and is not measured, a line each.
    """

    shape: ImageShape
    num_images: int
    batches: Callable[[], Iterator[ImageBatch]]
    data: DataConfig
    origin: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def measure(subject: Subject, extractor: Extractor, world: World, what: str, *, keep_features: bool) -> Measured:
    """Run the extractor over a subject, with a progress bar; called by all processes.

    Raises:
        UserError: for an image that cannot be used, or too few of them.
    """
    meter = FidelityMeter(extractor, subject.shape, subject.num_images, world, keep_features=keep_features)
    total = -(-subject.num_images // world.size)
    with tqdm(total=total, desc=what, unit="image", disable=not world.is_main) as bar:
        for batch in subject.batches():
            meter.update(batch)
            bar.update(len(batch.indices))
    return meter.result()


def checkpoint_subject(request: SamplingRequest, keep_images: Path | None, world: World) -> Subject:
    """Images generated as they are needed, or first written to ``keep_images`` (and resumed there).

    Raises:
        UserError: anything about the request, the checkpoint or the folder that does not fit.
    """
    planned = plan_images(request, world)
    generated = generated_subject(planned, request, world)
    if keep_images:
        write_images(planned, keep_images, world)
        kept = folder_subject(keep_images, None, world)
        if kept.num_images != request.num_images:
            raise UserError(
                f"--keep-images {keep_images}: holds {kept.num_images} images and not just the {request.num_images} "
                "that were generated; remove the others"
            )
        return replace(kept, data=planned.config.data, origin={**generated.origin, "kept_images": str(keep_images)})
    return generated


def generated_subject(planned: PlannedImages, request: SamplingRequest, world: World) -> Subject:
    """Planned images, generated as they are needed; the request is the one that they were planned for."""
    origin = generated_origin(planned.plan, planned.config, average=planned.saved.average, labels=request.labels)
    return Subject(
        shape=planned.maker.image_shape,
        num_images=planned.plan.num_images,
        batches=lambda: planned.maker.batches(planned.plan, world),
        data=planned.config.data,
        origin={"checkpoint": str(request.checkpoint), "checkpoint_sha256": planned.saved.sha256, **origin},
    )


def images_subject(path: Path, num_images: int | None, world: World) -> Subject:
    """The images of a folder or of an ``.npz``, with the pixels that they hold.

    Raises:
        UserError: see :class:`pmf.evaluation.image_sets.FlatFolder` and :class:`pmf.evaluation.npz_images.NpzImages`.
    """
    if path.is_dir() or path.suffix.lower() != ".npz":
        return folder_subject(path, num_images, world)
    images = NpzImages(path, num_images)
    world.ask_main(images.verify)
    return _as_they_are(images, world, {"images": str(path), "array": ARRAY})


def folder_subject(folder: Path, num_images: int | None, world: World) -> Subject:
    """The images that stand directly in a folder, with the pixels that they hold.

    Raises:
        UserError: see :class:`pmf.evaluation.image_sets.FlatFolder`.
    """
    images = FlatFolder(folder, num_images)
    sampling = folder / "sampling.json"
    advice = "remove it if the images are not those of one call of eval.py sample"
    record = read_object(sampling, advice) if sampling.exists() else None
    return _as_they_are(images, world, {"images": str(folder), "sampling": record})


def _as_they_are(images: FlatFolder | NpzImages, world: World, origin: dict[str, Any]) -> Subject:
    return Subject(
        shape=images.shape,
        num_images=len(images),
        batches=lambda: stream(images, world, READ_BATCH),
        data=DataConfig(image_size=images.shape[1], channels=1 if images.shape[0] == 1 else 3),
        origin={**origin, "preparation": "as they are"},
        warnings=images.warnings,
    )


def data_subject(data: DataConfig, world: World) -> Subject:
    """All images of a data set, with the ADM centre crop to ``data.image_size`` and without flips.

    Raises:
        UserError: the data set cannot be opened.
    """
    data = data.model_copy(update={"resampling": "pillow"})  # as published statistics are made
    source = create_source(data, seed=0)
    images = DataImages(source, (data.channels, data.image_size, data.image_size), data.path or data.kind)
    return Subject(
        shape=images.shape,
        num_images=len(images),
        batches=lambda: stream(images, world, READ_BATCH),
        data=data,
        origin={"images": data.path or data.kind, "split": data.split, "preparation": "ADM centre crop"},
        warnings=list(source.warnings),
    )


def named_subject(name: str, data: DataConfig, world: World) -> Subject:
    """``digits``, a config's data set, Parquet files, an ``.npz`` of images, or a folder: flat, or of class folders.

    Args:
        data: the size and channels that images of a data set are prepared to, and the columns and split of Parquet.

    Raises:
        UserError: nothing of that name, or it cannot be opened.
    """
    path = Path(name)
    size = {"image_size": data.image_size, "channels": data.channels}
    if name == "digits":
        return data_subject(DIGITS, world)
    if path.suffix in (".yaml", ".yml"):
        return data_subject(load_config(path).data.model_copy(update=size), world)
    parquet = data.model_copy(update={"kind": "parquet", "path": name})
    if path.suffix == ".parquet" or holds_parquet(name, data.split):
        return data_subject(parquet, world)
    if path.suffix.lower() == ".npz" and path.is_file():
        return images_subject(path, None, world)
    if not path.is_dir():
        raise UserError(f"{name}: is neither digits, a config (.yaml), Parquet files nor a folder of images")
    flat = list_flat(path, LeftOut())
    below = _below(path, data, world)
    if below is None and not flat and holds_parquet(name, None):
        return data_subject(parquet, world)  # it is another split's, which this says
    # The fewer images are strays, and counted among what is left out.
    return folder_subject(path, None, world) if below is None or len(flat) > below.num_images else below


def _below(path: Path, data: DataConfig, world: World) -> Subject | None:
    """The images of class folders in ``path``, or of a split's folder; None where there are none."""
    root = class_root(path, data.split)
    _, folders = scan_folder(root, "", LeftOut())
    if any(list_deep(root, folder, LeftOut()) for folder in folders):
        found = {"kind": "imagefolder", "path": str(path), "num_classes": len(folders)}
        return data_subject(data.model_copy(update=found), world)
    return folder_subject(root, None, world) if root != path and list_flat(root, LeftOut()) else None
