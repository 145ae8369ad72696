"""Sets of uint8 images that are read, not generated: PNG folders as they are, data sets with the ADM crop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pmf.data import Source
from pmf.data.loader import worker_context
from pmf.distributed import World
from pmf.errors import UserError
from pmf.evaluation.extractors import ImageShape

MODES = {"L": 1, "RGB": 3}
# Starting workers costs about as much as decoding this many images.
WORKERS_FROM = 4096
MAX_WORKERS = 8


@dataclass(frozen=True)
class ImageBatch:
    """Some images of a set.

    Attributes:
        images: (B, C, H, W) uint8.
        indices: which images of the set these are.
    """

    images: Tensor
    indices: list[int]


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


class PngFolder:
    """The ``*.png`` of a folder, sorted by name, with the pixels that they hold: no resizing, no conversion.

    Args:
        num_images: use only the first so many.

    Raises:
        UserError: no such folder, no PNGs, fewer than ``num_images``, a first image that cannot be used.
    """

    def __init__(self, folder: Path, num_images: int | None = None) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder of PNGs")
        self.folder = folder
        self.names = sorted(name for name in os.listdir(folder) if name.endswith(".png") and not name.startswith("."))
        if not self.names:
            raise UserError(f"{folder}: holds no .png files; give the folder that eval.py sample wrote")
        if num_images is not None and num_images > len(self.names):
            raise UserError(f"{folder}: holds {len(self.names)} images, fewer than --num-images {num_images}")
        self.names = self.names[:num_images]
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
            with Image.open(path) as image:
                image.load()
        except Exception as error:  # Broken files make Pillow raise OSError, SyntaxError, struct.error, zlib.error, ...
            reason = "not an image file" if isinstance(error, Image.UnidentifiedImageError) else str(error)
            raise UserError(f"{path}: cannot be decoded ({reason}); write it again or remove it") from None
        if image.mode not in MODES:
            raise UserError(f"{path}: has mode {image.mode}; allowed are {', '.join(MODES)} (8 bits, no transparency)")
        return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


class DataImages:
    """All images of a data set, decoded and centre-cropped as for training, without flips."""

    def __init__(self, source: Source, shape: ImageShape) -> None:
        self.source = source
        self.shape = shape

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """See :class:`ImageSet`."""
        return (sample.image for sample in self.source.samples(indices))


def stream(images: ImageSet, world: World, batch_size: int) -> Iterator[ImageBatch]:
    """This process's share of a set: one contiguous part, since neighbours in Parquet files are read together.

    Raises:
        UserError: for an image that cannot be used.
    """
    begin, end = (len(images) * rank // world.size for rank in (world.rank, world.rank + 1))
    workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)) // world.size) if len(images) >= WORKERS_FROM else 0
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
