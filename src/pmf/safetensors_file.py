"""One file of named tensors, as safetensors."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pmf.errors import UserError
from pmf.files import foreign_content
from pmf.storage import printable


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and the texts that it carries.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        with _in_utf8(file) as path:
            with safe_open(path, "pt") as opened:
                metadata = opened.metadata() or {}
            weights = load_file(path)
    except SafetensorError as error:
        problem = foreign_content(file) or f"cannot be read as safetensors ({error})"
        raise UserError(f"{file}: {problem}") from None
    return weights, metadata


@contextmanager
def _in_utf8(file: Path) -> Iterator[Path]:
    """A path of the file that the library can open for reading: it knows none that are not UTF-8."""
    if printable(str(file.absolute())) == str(file.absolute()):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "tensors"
        link.symlink_to(file.absolute())
        yield link


def save_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a file with the mode that the umask asks for.

    Raises:
        OSError: storage fails, also where the library reports it as an error of its own.
    """
    path.touch()
    mode = path.stat().st_mode  # as the umask has it; save_file puts a file there that its owner alone can read
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contents, path, metadata=metadata)
    except SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise OSError(errno.EIO, str(error), str(path)) from None
    if path.stat().st_mode != mode:  # some file systems have one mode for all, and refuse any other
        path.chmod(mode)
