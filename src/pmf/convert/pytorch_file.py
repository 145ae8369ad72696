"""PyTorch's own files (``.pt``): tensors only, unless told otherwise."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmf.errors import UserError
from pmf.files import complete_or_absent, foreign_content


def read_pytorch(path: Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    """The named tensors of a ``torch.save`` file, on the CPU, after checking the file's own checksums.

    Args:
        allow_pickle: also load a file that asks for more than tensors; this runs code that the file names.

    Raises:
        UserError: damaged, no such file, more than tensors in it, or not a flat mapping of names to tensors.
    """
    _require_intact(path)
    try:
        foreign = [] if allow_pickle else torch.serialization.get_unsafe_globals_in_checkpoint(path)
        loaded = None if foreign else torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except Exception as error:  # what a pickle asks for may fail in any way
        raise UserError(f"{path}: cannot be loaded ({' '.join(str(error).split())[:100]})") from None
    if foreign:
        raise UserError(
            f"{path}: holds more than tensors ({', '.join(foreign[:3])}); if you trust where it comes from, "
            "python -m pmf.convert import --allow-pickle loads it and runs what it asks for"
        )
    return _flat_tensors(loaded, path)


def write_pytorch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One ``.pt`` file, complete or absent."""
    with complete_or_absent(path) as temporary:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def _require_intact(path: Path) -> None:
    """``torch.load`` itself ignores the checksums that ``torch.save`` writes."""
    if not zipfile.is_zipfile(path):
        if foreign := foreign_content(path):
            raise UserError(f"{path}: {foreign}")
        with path.open("rb") as file:
            start = file.read(20)
        raise UserError(f"{path}: is no whole PyTorch file (it begins with {start!r}); download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            is_pytorch = any(name.endswith("data.pkl") for name in archive.namelist())
            damaged = archive.testzip() if is_pytorch else None
    except Exception as error:  # zipfile and zlib each have their own kinds
        raise UserError(f"{path}: is damaged ({error}); download it again") from None
    if not is_pytorch:
        raise UserError(f"{path}: is a zip archive but no PyTorch file; unzip it and give the folder inside")
    if damaged:
        raise UserError(f"{path}: is damaged ({damaged} does not match its checksum); download it again")


def _flat_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__}; official files map names to tensors")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {key!r} is a {type(value).__name__}; official files map names to tensors")
    return {name: tensor.detach() for name, tensor in loaded.items()}
