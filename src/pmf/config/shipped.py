"""Configs by name: those that come with the library, and how a command finds what ``--config`` names.

A checkout has them in ``configs/``; a wheel carries that folder within the package.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
SUFFIXES = (".yaml", ".yml")


def shipped_folder() -> Path:
    """The folder of the configs that come with the library."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parents[1] / "configs"


def shipped_names() -> list[str]:
    """The names of these configs, without the ending."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """The file that a name stands for: a local one if there is one, or else one of the library's.

    ``digits`` and ``digits.yaml`` are local files of that path, or else of that path in ``./configs``, or else the
    library's; so is ``configs/digits.yaml`` where there is no such local file. What is not found is returned as given.
    """
    return local_config(name) or shipped_config(name) or Path(name)


def local_config(name: str | Path) -> Path | None:
    """The local file that a name stands for; None if there is none."""
    candidates = [folder / file for folder in (Path(), Path("configs")) for file in _file_names(str(name))]
    return next((path for path in candidates if os.path.exists(path) and not os.path.isdir(path)), None)


def shipped_config(name: str | Path) -> Path | None:
    """The library's config of that name; None if there is none."""
    path = Path(str(Path(name)).removeprefix("configs/"))
    if path.is_absolute() or ".." in path.parts:
        return None
    candidates = [shipped_folder() / file for file in _file_names(str(path))]
    return next((path for path in candidates if os.path.isfile(path)), None)


def known_configs(name: str | Path) -> str:
    """For the error of a name that is not found: the nearest names, or else all."""
    if not os.path.exists(name) and (close := difflib.get_close_matches(Path(name).stem, shipped_names())):
        return f"did you mean {' or '.join(close)}?"
    local = sorted(str(path) for path in Path("configs").glob("*.yaml"))
    return f"known configs: {', '.join(local or shipped_names())}"


def _file_names(name: str) -> list[str]:
    return [name] if name.endswith(SUFFIXES) else [name, f"{name}.yaml"]
