"""PyTorch's own files (``.pt``, ``.pth``, ``.ckpt``, ``.bin``): tensors only, unless told otherwise."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmf.errors import UserError
from pmf.files import complete_or_absent, foreign_content, storage_reason

MOST_KEYS_NAMED = 12
TOP = ""


def read_pytorch(path: Path, *, key: str | None = None, allow_pickle: bool) -> dict[str, Tensor]:
    """The named tensors of a ``torch.save`` file, on the CPU, after checking the file's own checksums.

    Args:
        key: which of several sets of weights, as ``ema`` or ``state.model``; None where there is one.
        allow_pickle: also load a file that asks for more than tensors; this runs code that the file names.

    Raises:
        UserError: damaged, no such file, more than tensors in it, several sets of weights, or none.
    """
    _require_intact(path)
    zipped = zipfile.is_zipfile(path)
    try:
        # A pickle from before torch 1.6 cannot be asked what it names; the loader refuses at the first.
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped and not allow_pickle else []
        # Of a path, torch would ask the ending; and what it warns of is told below.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            loaded = None if foreign else torch.load(file, map_location="cpu", weights_only=not allow_pickle)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({storage_reason(error)})") from None
    except Exception as error:  # what a pickle asks for may fail in any way
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is None and "Unsupported operand" in str(error):
            raise UserError(
                f"{path}: is a pickle that torch.save did not write; load it and save its tensors so"
            ) from None
        if named is None:
            raise UserError(f"{path}: cannot be loaded ({' '.join(str(error).split())[:100]})") from None
        foreign = [named[1]]
    if foreign:
        raise UserError(
            f"{path}: holds more than tensors ({', '.join(foreign[:3])}); if you trust where it comes from, "
            "python -m pmf.convert import --allow-pickle loads it and runs what it asks for"
        )
    return _choose(loaded, key, path)


def write_pytorch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One ``.pt`` file, complete or absent.

    Raises:
        OSError: storage fails.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with complete_or_absent(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch complains of the count of bytes, and hides why
                raise error.__context__ from None
            raise


def _require_intact(path: Path) -> None:
    """``torch.load`` itself ignores the checksums that ``torch.save`` writes; a pickle has none."""
    if not zipfile.is_zipfile(path):
        if foreign := foreign_content(path):
            raise UserError(f"{path}: {foreign}")
        with path.open("rb") as file:
            start = file.read(20)
        if start.startswith(b"\x80"):
            return
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


def _choose(loaded: Any, key: str | None, path: Path) -> dict[str, Tensor]:
    """The set of weights that ``key`` names; without a key, the only one."""
    sets = dict(_weight_sets(loaded, TOP))
    if key is not None:
        if key in sets and key != TOP:
            return sets[key]
        if TOP in sets:
            raise UserError(f"{path}: holds one set of weights; leave out --key {key}")
        raise UserError(f"{path}: has no weights under {key!r}; {_told(sets)}")
    if len(sets) == 1:
        return next(iter(sets.values()))
    if sets:
        raise UserError(f"{path}: holds {len(sets)} sets of weights; {_told(sets)}")
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: holds a {type(loaded).__name__}; official files map names to tensors")
    if not loaded:
        raise UserError(f"{path}: holds nothing; official files map names to tensors")
    name, value = next(
        item for item in loaded.items() if not (isinstance(item[0], str) and isinstance(item[1], Tensor))
    )
    raise UserError(f"{path}: {name!r} is a {type(value).__name__}; official files map names to tensors")


def _weight_sets(value: Any, key: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each mapping of names to tensors within nested dictionaries, by the keys that lead to it, joined by dots."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        return
    if all(isinstance(item, Tensor) for item in value.values()):
        yield key, {name: tensor.detach() for name, tensor in value.items()}
        return
    for name, item in value.items():
        yield from _weight_sets(item, f"{key}.{name}" if key else name)


def _told(sets: Mapping[str, Mapping[str, Tensor]]) -> str:
    if not sets:
        return "it holds none"
    more = f" and {len(sets) - MOST_KEYS_NAMED} more" if len(sets) > MOST_KEYS_NAMED else ""
    return f"choose with --key one of: {', '.join(list(sets)[:MOST_KEYS_NAMED])}{more}"
