"""Files: written whole or not at all, their checksums, and what a download left in the place of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def foreign_content(path: str | Path) -> str | None:
    """What stands in a file instead of its content, and what to do about it; None if it is none of these.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(256).lstrip().lower()
    if not start:
        return "this file is empty (0 bytes); download it again"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the file itself; run `git lfs pull` there"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "this is a web page (a login or error page was saved); log in and download the file again"
    return None


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A temporary path to write to; what stands there in the end is flushed to disk and renamed to ``path``."""
    temporary = path.with_name(f".incomplete_{path.name}")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on disk before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
