"""Sets of uint8 images that are read, not generated: folders as they are, data sets with the ADM crop."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pmf.data.image_files import LeftOut, list_flat
from pmf.data.loader import worker_context
from pmf.data.source import Source, good_samples
from pmf.data.transforms import ImageError, open_image
from pmf.distributed.world import World, usable_cores
from pmf.errors import UserError
from pmf.evaluation.extractors import ImageShape
from pmf.generation.plan import ImageBatch

MODES = {"L": 1, "RGB": 3}
# Starting workers costs about as much as decoding this many images.
WORKERS_FROM = 4096
MAX_WORKERS = 8
# 64 images of 1024 x 1024; larger ones come in smaller batches.
MAX_BATCH_BYTES = 3 * 2**26


class ImageSet(Protocol):
    """``len(images)`` images of one shape with access by index. Picklable: workers get a copy."""

    @property
    def shape(self) -> ImageShape:
        """Of each image."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Images uint8 (C, H, W) of ascending ``indices`` int64 (n,), lazily and in order.

        Raises:
            UserError: naming the file, for an image that cannot be used.
        """
        ...


class FlatFolder:
    """The images that stand directly in a folder, sorted by name, with the pixels that they hold: nothing is resized.

    Args:
        num_images: use only the first so many.

    Attributes:
        warnings: what is left out, and that there are images of several formats, a line each.

    Raises:
        UserError: no such folder, no images, fewer than ``num_images``, a first image that cannot be used.
    """

    def __init__(self, folder: Path, num_images: int | None = None) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder of images")
        self.folder = folder
        left_out = LeftOut()
        self.names = list_flat(folder, left_out)
        self.warnings = left_out.warnings(folder)
        if not self.names:
            found = f" ({left_out})" if self.warnings else ""
            raise UserError(f"{folder}: holds no images{found}; give a folder of image files, as eval.py sample writes")
        self.names = self.names[: require_enough(folder, len(self.names), num_images)]
        endings = Counter(os.path.splitext(name)[1].lower() for name in self.names)
        if len(endings) > 1:
            told = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
            self.warnings.append(f"{folder}: its images are of several formats, which features can tell apart: {told}")
        first = self._pixels(self.names[0])
        self.shape: ImageShape = first.shape

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """See :class:`ImageSet`."""
        for index in indices.tolist():
            pixels = self._pixels(self.names[index])
            if pixels.shape != self.shape:
                raise UserError(
                    f"{self.folder / self.names[index]}: is {_describe(pixels.shape)}, but {self.names[0]} is "
                    f"{_describe(self.shape)}; a set has one size and mode"
                )
            yield pixels

    def _pixels(self, name: str) -> np.ndarray:
        path = self.folder / name
        try:
            image = open_image(path)
        except (ImageError, OSError) as error:
            raise UserError(f"{path}: cannot be decoded ({error}); write it again or remove it") from None
        if image.mode not in MODES:
            raise UserError(f"{path}: has mode {image.mode}; allowed are {', '.join(MODES)} (8 bits, no transparency)")
        return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


class DataImages:
    """All images of a data set, decoded and centre-cropped as for training, without flips; ``name`` is for errors."""

    def __init__(self, source: Source, shape: ImageShape, name: str) -> None:
        self.source = source
        self.shape = shape
        self.name = name

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """See :class:`ImageSet`.

        Raises:
            UserError: the set holds something else than images, moments of latents for example.
        """
        for sample in good_samples(self.source.samples(indices)):
            if sample.image.dtype != np.uint8:
                raise UserError(
                    f"{self.name}: holds {sample.image.dtype} numbers and no images; "
                    "measure the images that they were made from"
                )
            yield sample.image


def require_enough(path: Path, there: int, num_images: int | None) -> int:
    """How many images to use: ``num_images`` or all.

    Raises:
        UserError: there are fewer.
    """
    if num_images is not None and num_images > there:
        raise UserError(f"{path}: holds {there} images, fewer than --num-images {num_images}")
    return there if num_images is None else num_images


def stream(images: ImageSet, world: World, batch_size: int) -> Iterator[ImageBatch]:
    """This process's share of a set: one contiguous part, since neighbours in Parquet files are read together.

    Raises:
        UserError: for an image that cannot be used.
    """
    begin, end = (len(images) * rank // world.size for rank in (world.rank, world.rank + 1))
    batch_size = min(batch_size, max(MAX_BATCH_BYTES // math.prod(images.shape), 1))
    workers = min(MAX_WORKERS, usable_cores() // world.size) if len(images) >= WORKERS_FROM else 0
    batches = DataLoader(
        _Batches(images, begin, end, batch_size),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=worker_context() if workers else None,
        # Without its own generator, torch would draw the workers' seeds from the global one.
        generator=torch.Generator(),
    )
    for item in batches:
        if isinstance(item, UserError):
            raise item
        yield item


class _Batches(IterableDataset[ImageBatch | UserError]):
    """Images [begin, end), cut into one contiguous part a worker."""

    def __init__(self, images: ImageSet, begin: int, end: int, batch_size: int) -> None:
        self.images = images
        self.begin = begin
        self.end = end
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[ImageBatch | UserError]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        cuts = [self.begin + (self.end - self.begin) * part // count for part in (number, number + 1)]
        try:
            yield from self._batches(np.arange(*cuts))
        except UserError as error:
            # As a value: torch would wrap an exception from a worker in its traceback.
            yield error

    def _batches(self, indices: np.ndarray) -> Iterator[ImageBatch]:
        pixels = self.images.read(indices)
        for start in range(0, len(indices), self.batch_size):
            own = indices[start : start + self.batch_size].tolist()
            yield ImageBatch(torch.from_numpy(np.stack([next(pixels) for _ in own])), own)


def _describe(shape: ImageShape) -> str:
    return f"{shape[2]} x {shape[1]} pixels with {shape[0]} channel{'s' if shape[0] > 1 else ''}"
