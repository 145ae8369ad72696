"""Files: the paths that users give, writing whole or not at all, checksums, what a download left in place of one."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pmf.errors import UserError
from pmf.storage import NO_FLUSH, printable

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


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


def file_format(path: Path) -> str | None:
    """``safetensors`` or ``pytorch`` (a zip archive, or a pickle from before torch 1.6) by a file's content; else None.

    A file that is cut short is still recognised.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04") or re.match(rb"\x80[\x02-\x05]", start):
        return "pytorch"
    # The length of a header, which is a JSON object and never as long as 100 MB.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000:
        return "safetensors"
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


def flush(path: Path) -> str | None:
    """Have a file, or the names in a folder, on disk before anything else is done.

    Returns:
        Why the file system cannot do this for folders, where it cannot: it has the names there at a time of its own.

    Raises:
        OSError: it fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH or not path.is_dir():
            raise
        return error.strerror
    finally:
        os.close(descriptor)
    return None


def write_json(path: Path, values: Any) -> None:
    """Plain values as JSON, complete or absent."""
    with complete_or_absent(path) as temporary:
        temporary.write_text(json.dumps(printable(values), indent=1) + "\n")


def file_sha256(path: Path) -> str:
    """Of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand_path(text: str) -> str:
    """A path that a user gave, with a leading ``~``, ``$NAME`` and ``${NAME}`` replaced; URLs stay as they are.

    A relative path stays relative: to the working directory.

    Raises:
        UserError: it is empty, or names a variable or a user that is not there. Begins with a verb: the caller says
            what the path is for.
    """
    if not text.strip():
        raise UserError("is empty; write a path")
    if "://" in text:
        return text
    if strange := re.search(r"\$[({].*", _VARIABLE.sub("", text)):
        raise UserError(f"holds {strange[0]}, which only a shell understands; use $NAME, ${{NAME}} or write the value")
    expanded = os.path.expanduser(expand_variables(text, _VARIABLE))
    if expanded.startswith("~"):
        name = expanded.partition("/")[0]
        raise UserError(f"begins with {name}, whose home folder is not known; write it out (./{name} if it is a name)")
    return expanded


def expand_variables(text: str, pattern: re.Pattern[str]) -> str:
    """Text with the environment's values in place of each match; its last non-empty group is the variable's name.

    Raises:
        UserError: a variable is not set, or empty, which would make another path of it.
    """

    def value(match: re.Match[str]) -> str:
        name = match[match.lastindex or 0]
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise UserError(f"uses {match[0]}, which is {state}; export it or write the value")
        return os.environ[name]

    return pattern.sub(value, text)
