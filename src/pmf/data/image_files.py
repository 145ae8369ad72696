"""Which files of a folder are images: one rule for training data, references, measured sets and sample folders.

An image is a file, or a link to one, whose name is not hidden and has one of ``EXTENSIONS`` in letters of any case.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pmf.errors import UserError

# What the decoders of transforms.FORMATS read, without .pfm, whose float pixels have no known range.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Made by macOS in archives and by Synology beside pictures; full of names like ._cat.jpg and of thumbnails.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
# What eval.py sample leaves beside its images.
RECORDS = ("labels.csv", "sampling.json")


class LeftOut:
    """Entries of a folder that are not used: their number for each reason, and the alphabetically first name."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, reason: str, names: Iterable[str]) -> None:
        """Count names that are not used; ``reason`` says what they are, in the plural."""
        for name in names:
            self._counts[reason] = self._counts.get(reason, 0) + 1
            self._examples[reason] = min(name, self._examples.get(reason, name))

    def __str__(self) -> str:
        told = [f"{reason}: {count} (first {self._examples[reason]})" for reason, count in sorted(self._counts.items())]
        return "left out are " + ", ".join(told)

    def warnings(self, folder: Path) -> list[str]:
        """A list of one line, or of none where everything is used."""
        return [f"{folder}: {self}"] if self._counts else []


def is_hidden(name: str) -> bool:
    """Whether a name is the system's and not the user's: ``.DS_Store``, ``._cat.jpg``, ``__MACOSX``."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image."""
    return not is_hidden(name) and name.lower().endswith(EXTENSIONS)


def scan_folder(root: Path, folder: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """The images and the folders that stand directly in ``root``/``folder``.

    Args:
        left_out: is told about everything else, but for the records of ``eval.py sample``.

    Returns:
        Their paths relative to ``root``, each list sorted.

    Raises:
        UserError: the folder cannot be read.
    """
    images, folders = [], []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path, kind = os.path.join(folder, entry.name), _kind(entry)
                if is_hidden(entry.name):
                    left_out.add("hidden names", [path])
                elif kind == "folder":
                    folders.append(path)
                elif kind == "other":
                    left_out.add("names of no file, as broken links are", [path])
                elif is_image_name(entry.name):
                    images.append(path)
                elif entry.name not in RECORDS:
                    left_out.add("files without the ending of an image", [path])
    except OSError as error:
        raise _unreadable(root / folder, error) from None
    return sorted(images), sorted(folders)


def list_flat(root: Path, left_out: LeftOut) -> list[str]:
    """Names of the images that stand directly in ``root``, sorted; its folders are left out.

    Raises:
        UserError: the folder cannot be read.
    """
    images, folders = scan_folder(root, "", left_out)
    left_out.add("folders", folders)
    return images


def list_deep(root: Path, folder: str, left_out: LeftOut) -> list[str]:
    """Paths, relative to ``root``, of the images at any depth below ``root``/``folder``, sorted.

    Links to folders are followed, but for those that lead back to a folder they stand in.

    Raises:
        UserError: a folder cannot be read.
    """
    absolute = root.resolve()
    pending = [(folder, frozenset(_identity(parent) for parent in (absolute, *absolute.parents)))]
    found: list[str] = []
    while pending:
        folder, above = pending.pop()
        own = _identity(root / folder)
        if own in above:
            left_out.add("links to a folder that they stand in", [folder])
            continue
        images, folders = scan_folder(root, folder, left_out)
        found += images
        pending += ((inner, above | {own}) for inner in folders)
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    """What two paths of the same folder have in common."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from None
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other"
    except OSError:  # a link that leads in a circle, or to where this user may not look
        return "other"


def _unreadable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: this folder cannot be read: {error.strerror}")
