"""Images in an ``.npz``, as ADM's evaluation writes and publishes them: ``arr_0``, (N, H, W, 3) uint8."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from pmf.data.transforms import MAX_PIXELS
from pmf.errors import UserError
from pmf.evaluation.extractors import ImageShape
from pmf.evaluation.image_sets import MODES, require_enough

ARRAY = "arr_0"
CHUNK = 2**20


class NpzImages:
    """The images of an ``.npz``, read one by one; the array is never in memory as a whole, and nothing is unpickled.

    Args:
        num_images: use only the first so many.

    Raises:
        UserError: no such file, no ``.npz``, no ``arr_0``, another type or shape, fewer than ``num_images``.
    """

    def __init__(self, path: Path, num_images: int | None = None) -> None:
        self.path = path
        self.warnings: list[str] = []
        with self._member() as file:
            try:
                version = npy.read_magic(file)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, fortran_order, dtype = read_header(file)
            except ValueError:
                raise self._damaged("its header") from None
            self._start = file.tell()
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in MODES.values() or fortran_order or min(shape) < 1:
            order = " in Fortran's order" if fortran_order else ""
            raise UserError(
                f"{path}: {ARRAY} has shape {shape} and type {dtype}{order}; a set of images is N x H x W x 3 (or x 1 "
                "for grey) of type uint8"
            )
        if shape[1] * shape[2] > MAX_PIXELS:
            raise UserError(f"{path}: its images of {shape[2]} x {shape[1]} pixels are larger than {MAX_PIXELS:,}")
        self.shape: ImageShape = (shape[3], shape[1], shape[2])
        self._num_images = require_enough(path, shape[0], num_images)

    def __len__(self) -> int:
        return self._num_images

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """See :class:`pmf.evaluation.image_sets.ImageSet`."""
        channels, height, width = self.shape
        size = math.prod(self.shape)
        with self._member() as file:
            for index in indices.tolist():
                target = self._start + index * size
                for place in (*range(file.tell(), target, CHUNK), target):  # a compressed file is read to get there
                    file.seek(place)
                content = file.read(size)
                if len(content) < size:
                    raise self._damaged(f"image {index}")
                yield np.frombuffer(content, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)

    def verify(self) -> None:
        """Read everything once, which compares it with the checksum in the file.

        Raises:
            UserError: they differ.
        """
        with self._member() as file:
            while file.read(CHUNK):
                pass

    @contextmanager
    def _member(self) -> Iterator[IO[bytes]]:
        """The array's ``.npy``, unpacked as it is read."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = archive.namelist()
                if f"{ARRAY}.npy" not in names:
                    held = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
                    raise UserError(f"{self.path}: holds {held}; a set of images is {ARRAY}: N x H x W x 3, uint8")
                with archive.open(f"{ARRAY}.npy") as file:
                    yield file
        # NotImplementedError and RuntimeError: compressed or encrypted in a way that Python does not read.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
            raise self._damaged("what is there") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: is not an intact .npz file ({what} cannot be read); write or download it again")


def array_names(path: Path) -> frozenset[str]:
    """Names of the arrays of an ``.npz``; empty for what cannot be read as one, of which its reader will say why."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return frozenset()
