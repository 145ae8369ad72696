"""What a file is, where a download left something else in its place."""

from __future__ import annotations

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
