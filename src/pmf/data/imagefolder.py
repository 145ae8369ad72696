"""A folder of class folders of image files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pmf.config import DataConfig
from pmf.data.source import CorruptImage, Sample, names_in, prepare
from pmf.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFolderSource:
    """Files of ``data.path``/CLASS/ or ``data.path``/SPLIT/CLASS/; labels number the classes sorted by name.

    Class folders are searched in depth; other files and hidden folders are ignored.

    Raises:
        UserError: for a missing path, a number of class folders other than ``data.num_classes``, an empty set.
    """

    block_starts = None

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.root = _root(config)
        classes = sorted(entry.name for entry in os.scandir(self.root) if _is_visible_folder(entry))
        if len(classes) != config.num_classes:
            raise UserError(
                f"{self.root}: there are {len(classes)} class folders ({names_in(classes)}) but data.num_classes is "
                f"{config.num_classes}; correct one of them, or data.path"
            )
        names: list[bytes] = []
        counts = []
        for name in classes:
            found = sorted(_image_files(self.root, name))
            names += (os.fsencode(path) for path in found)
            counts.append(len(found))
        if not names:
            raise UserError(
                f"{self.root}: the {len(classes)} class folders hold no images; known endings: {', '.join(EXTENSIONS)}"
            )
        # One string and its cuts: a million str objects would be pickled and kept by every worker.
        self._names = b"".join(names)
        self._cuts = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._class_ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def samples(self, indices: np.ndarray) -> Iterator[Sample | CorruptImage]:
        """See :class:`pmf.data.source.Source`."""
        labels = np.searchsorted(self._class_ends, indices, side="right")
        for index, label in zip(indices.tolist(), labels.tolist()):
            path = self.path(index)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: this image cannot be read: {error.strerror}") from None
            yield prepare(data, label, self.config, str(path))

    def path(self, index: int) -> Path:
        """The file of image ``index``."""
        return self.root / os.fsdecode(self._names[self._cuts[index] : self._cuts[index + 1]])


def _root(config: DataConfig) -> Path:
    path = Path(config.path or "")
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path}: data.path {state}; give the folder that holds one folder per class")
    return path / config.split if (path / config.split).is_dir() else path


def _is_visible_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _image_files(root: Path, folder: str) -> Iterator[str]:
    """Paths of images under ``folder``, relative to ``root``."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if _is_visible_folder(entry):
                yield from _image_files(root, f"{folder}/{entry.name}")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield f"{folder}/{entry.name}"
