"""What storage refuses, in words that help; and file names that no terminal or record can hold as they are."""

from __future__ import annotations

import errno
import os
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
def writing(what: str, otherwise: str = "choose another", *, again: bool = False) -> Iterator[None]:
    """Around what writes to disk.

    Args:
        what: option and path, for the message.
        otherwise: the advice where the place itself is at fault.
        again: a run is under way, which its command continues.

    Raises:
        UserError: storage fails, in one line.
    """
    try:
        yield
    except OSError as error:
        advice = storage_advice(error, otherwise)
        if again:
            advice += " and start the same command again"
        raise UserError(f"{what}: cannot be written ({storage_reason(error)}); {advice}") from None


def storage_reason(error: OSError) -> str:
    """What happened, in the system's words."""
    return error.strerror or str(error)


def storage_advice(error: OSError, otherwise: str) -> str:
    """What helps against this kind of error; ``otherwise`` where nothing is known but that this place does not do."""
    return _ADVICE.get(error.errno or 0, otherwise)


@contextmanager
def storage_in_one_line() -> Iterator[None]:
    """Around a whole command: what storage refuses anywhere in it is no mistake of the program's.

    Raises:
        UserError: in place of an ``OSError`` that the state of storage, or rights on it, explain.
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
    """Whether a path that a user gave leads anywhere can be asked.

    Raises:
        UserError: its links lead in a circle, or its name is longer than any that the file system can hold.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise UserError(f"{what}: {storage_reason(error)}; {storage_advice(error, '')}") from None


def printable(value: Any) -> Any:
    """Plain values in which each file name that is not UTF-8 has its foreign bytes written out, as in ``caf\\udce9``.

    JSON and trackers know no others.
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
