"""A folder of class folders of image files, or of images of one class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pmf.data.image_files import EXTENSIONS, LeftOut, list_deep, list_flat, scan_folder
from pmf.data.options import DataConfig
from pmf.data.source import CorruptImage, Sample, first_names, prepare
from pmf.data.transforms import MAX_FILE_BYTES
from pmf.errors import UserError

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


class ImageFolderSource:
    """Files of ``data.path``/CLASS/ or ``data.path``/SPLIT/CLASS/; labels number the classes sorted by name.

    Class folders are searched in depth; which files are images is image_files.py's rule. Where there are no class
    folders and ``data.num_classes`` is 1, the images that stand there are the class.

    Raises:
        UserError: for a missing path, folders that are splits and not classes, a number of class folders other than
            ``data.num_classes``, images without class folders where that is not 1, an empty set.
    """

    block_starts = None

    def __init__(self, config: DataConfig, _seed: int = 0) -> None:
        self.config = config
        path = Path(config.path or "")
        if not path.is_dir():
            state = "is a file" if path.exists() else "does not exist"
            raise UserError(f"{path}: data.path {state}; give the folder that holds one folder per class")
        self.root = class_root(path, config.split)
        left_out = LeftOut()
        beside, classes = scan_folder(self.root, "", left_out)
        if self.root != path:
            left_out.add("images beside the folder of the split", list_flat(path, LeftOut()))
        self.class_names = tuple(classes)
        names: list[bytes] = []
        counts = []
        for found in self._images_by_class(beside, classes, left_out):
            names += (os.fsencode(path) for path in found)
            counts.append(len(found))
        if not names:
            raise UserError(
                f"{self.root}: the {len(classes)} class folders hold no images; known endings: {', '.join(EXTENSIONS)}"
            )
        left_out.add("class folders without images", [name for name, count in zip(classes, counts) if not count])
        self.warnings = left_out.warnings(self.root)
        # One string and its cuts: a million str objects would be pickled and kept by every worker.
        self._names = b"".join(names)
        self._cuts = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._class_ends = np.cumsum(counts, dtype=np.int64)

    def _images_by_class(self, beside: list[str], classes: list[str], left_out: LeftOut) -> Iterator[list[str]]:
        """The images of one class after the other; ``beside`` are those that stand in no class folder."""
        wanted = self.config.num_classes
        if beside and not classes:
            if wanted == 1:
                yield beside
                return
            raise UserError(
                f"{self.root}: there are images ({first_names(beside)}) but no class folders; move them into one "
                f"folder per class, or set data.num_classes to 1 (it is {wanted}) to train on them as one class"
            )
        if len(classes) != wanted:
            raise UserError(
                f"{self.root}: there are {len(classes)} class folders ({first_names(classes)}) but data.num_classes is "
                f"{wanted}; correct one of them, or data.path"
            )
        left_out.add("images beside the class folders", beside)
        for name in classes:
            yield list_deep(self.root, name, left_out)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def samples(self, indices: np.ndarray) -> Iterator[Sample | CorruptImage]:
        """See :class:`pmf.data.source.Source`."""
        labels = np.searchsorted(self._class_ends, indices, side="right")
        for index, label in zip(indices.tolist(), labels.tolist()):
            path = self.path(index)
            try:
                size = path.stat().st_size
                data = path.read_bytes() if size <= MAX_FILE_BYTES else b""
            except OSError as error:
                raise UserError(f"{path}: this image cannot be read: {error.strerror}") from None
            if size > MAX_FILE_BYTES:
                yield CorruptImage(str(path), f"its file has {size} bytes, more than {MAX_FILE_BYTES}")
            else:
                yield prepare(data, label, self.config, str(path))

    def path(self, index: int) -> Path:
        """The file of image ``index``."""
        return self.root / os.fsdecode(self._names[self._cuts[index] : self._cuts[index + 1]])


def class_root(path: Path, split: str) -> Path:
    """The folder that holds the class folders: ``path``/``split`` or ``path``.

    A folder named like the split is the split, unless it holds no folders and stands beside others that are not named
    like splits: then it is a class of that name, as COCO's train is.

    Raises:
        UserError: the folders of ``path`` are splits and ``split`` names none of them. Folders are splits where all are
            named like splits, or where two or more that are so named hold folders of their own.
    """
    folders = _visible_folders(path)
    named = [name for name in folders if name.lower() in SPLITS]
    if (path / split).is_dir() and (_visible_folders(path / split) or set(folders) <= {split, *named}):
        return path / split
    nested = [name for name in named if _visible_folders(path / name)]
    if named and (named == folders or len(nested) > 1):
        raise UserError(
            f"{path}: its folders {first_names(named)} are named like splits and data.split is {split!r}; set "
            "data.split to one of them, or rename them if they are classes"
        )
    return path


def _visible_folders(path: Path) -> list[str]:
    return scan_folder(path, "", LeftOut())[1]
