"""Files: the one way to write them (complete or absent), to hash them and to read JSON; what a file is by its content;
and what storage refuses, in words that help.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pmf.errors import UserError

# What helps, by the kind of error. What is not here is the fault of the place itself: rights, no such folder, ...
_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, for the quota is used up",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the symbolic link that leads back to itself",
    errno.EIO: "the disk or the connection to it fails: see the system's log",
    errno.ESTALE: "the server has replaced this file system: mount it again",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
    errno.ENFILE: "close other programs: this machine has too many files open",
}
RIGHTS = "see that the folder can be written"
"""Advice where the place has been written to before."""
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# What file systems answer that cannot do what they are asked for, rather than that it failed.
NO_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def complete_or_absent(path: Path, *, by_several: bool = False) -> Iterator[Path]:
    """A temporary path to write to; what stands there in the end is flushed to disk and renamed to ``path``.

    Args:
        path: in a folder that exists; a file of that name is replaced.
        by_several: several processes may write this file at the same time, so that each needs a temporary path of its
            own. Otherwise what a killed process left is overwritten by the next.
    """
    writer = f"{socket.gethostname()}_{os.getpid()}_" if by_several else ""
    temporary = path.with_name(f".incomplete_{writer}{path.name}")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> str | None:
    """Wait until a file, or the names in a folder, are on the disk itself.

    Returns:
        Why the file system cannot do this for folders, if it cannot: it writes their names at a time of its own choice.

    Raises:
        OSError: the disk or the file system fails.
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
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: the file cannot be read, is not JSON, or is JSON of another kind; the line ends with ``advice``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from None
    return parse_object(content, str(path), advice)


def parse_object(text: str | bytes, where: str, advice: str) -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
        where: names the text in errors.
        advice: what its user can do where it is none.

    Raises:
        UserError: the text is not JSON, or JSON of another kind (a list, a number).
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        raise UserError(f"{where}: is not valid JSON; {advice}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: is a JSON {type(found).__name__} instead of an object; {advice}")
    return found


def foreign_content(path: str | Path) -> str | None:
    """Which usual mistake a file is instead of what was wanted (empty, a Git LFS pointer, a web page), and what to do.

    Returns:
        A part of a line; None if the file is none of these.

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
    """The format of a file of tensors by its content: ``safetensors``, ``pytorch`` or None for any other.

    ``pytorch`` is a zip archive, or a pickle from before torch 1.6. A file that is cut short is still recognised.
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
def writing(what: str, otherwise: str = "choose another", *, again: bool = False) -> Iterator[None]:
    """A context around what writes to disk: a failure of storage becomes one line for the user.

    Args:
        what: option and path, for the message.
        otherwise: the advice where the place itself is at fault.
        again: a run is under way, and starting the same command again continues it.

    Raises:
        UserError: storage fails.
    """
    try:
        yield
    except OSError as error:
        advice = storage_advice(error, otherwise)
        if again:
            advice += " and start the same command again"
        raise UserError(f"{what}: cannot be written ({storage_reason(error)}); {advice}") from None


@contextmanager
def storage_in_one_line() -> Iterator[None]:
    """A context around a whole command: what storage refuses anywhere in it is told like a user's mistake.

    Raises:
        UserError: in place of an ``OSError`` that the state of storage, or missing rights, explain.
    """
    try:
        yield
    except OSError as error:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
        if error.errno not in _ADVICE and not (place and error.errno in _REFUSED):
            raise
        advice = storage_advice(error, "choose a place that may be read and written, or change its rights")
        raise UserError(f"{place}{storage_reason(error)}; {advice}") from None


def require_reachable(path: Path, what: str) -> None:
    """Refuse a path of which the system cannot even say whether something is there.

    Args:
        what: option and path, for the message.

    Raises:
        UserError: its links lead in a circle, or its name is longer than any that the file system can hold.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise UserError(f"{what}: {storage_reason(error)}; {storage_advice(error, '')}") from None


def storage_reason(error: OSError) -> str:
    """What an error says, in the system's words."""
    return error.strerror or str(error)


def storage_advice(error: OSError, otherwise: str) -> str:
    """What helps against an error of storage; ``otherwise`` where nothing is known but that this place fails."""
    return _ADVICE.get(error.errno or 0, otherwise)


def printable(value: Any) -> Any:
    """Plain values with every string valid UTF-8: bytes of file names that are not are written out, as ``caf\\udce9``.

    JSON and trackers take no other strings.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, (list, tuple)) else value


def print_any_name() -> None:
    """Have the terminal show file names that are not in its encoding with backslashes, rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
