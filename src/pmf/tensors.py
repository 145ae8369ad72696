"""Tensors by name: files of them (safetensors, published ones), their hash, and the checks before every load."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pmf.errors import NotFiniteError, UserError
from pmf.files import foreign_content, printable


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


def open_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a file, read from the disk where they are looked at, and the texts that it carries.

    Returns:
        By name, safetensors' slices: ``found[3]`` and ``found[:]`` are numpy arrays, ``found.get_shape()`` a list.

    Raises:
        UserError: it is damaged, something else, or cannot be read.
    """
    try:
        with _in_utf8(file) as path, safe_open(path, "numpy") as opened:
            return {name: opened.get_slice(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        problem = foreign_content(file) or f"cannot be read as safetensors ({error})"
        raise UserError(f"{file}: {problem}") from None


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


def hub_path(name: str) -> Path:
    """Where a published file of this name is kept on this machine: in ``$TORCH_HOME``, as torch.hub does."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def download_once(url: str, name: str, *, sha256_start: str | None = None, progress: bool = True) -> Path:
    """The local copy of a published file, downloaded at first use; complete or absent.

    Args:
        name: under which it is kept; see :func:`hub_path`.
        sha256_start: first hex digits of its sha256, to be checked after a download.
        progress: show a bar.

    Raises:
        OSError: no network, no such page, or no space.
        ValueError: a malformed URL.
        http.client.HTTPException: a server that does not speak HTTP.
        RuntimeError: another sha256.
    """
    path = hub_path(name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), sha256_start, progress=progress)
    return path


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names and values, in hex; the order of the mapping does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_same_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, intro: str, advice: str) -> None:
    """Names and shapes must agree exactly; dtypes are converted on copying.

    Raises:
        UserError: ``intro``, the first three tensors that differ, then ``advice``.
    """
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [
        f"{name} is {tuple(given[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems += [f"{name} is unknown here" for name in given if name not in own]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{intro}: {'; '.join(problems[:3])}{more}; {advice}")


def require_finite(tensors: Mapping[str, Tensor], *, intro: str, advice: str) -> None:
    """No value may be NaN or infinite.

    Raises:
        NotFiniteError: ``intro``, the first tensor that holds such values and how many there are, then ``advice``.
    """
    wrong = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if wrong:
        tensor = tensors[wrong[0]]
        more = f", and so do {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
        raise NotFiniteError(
            f"{intro}: {wrong[0]} holds {int((~tensor.isfinite()).sum())} of {tensor.numel()} values that are not "
            f"finite{more}; {advice}"
        )
