"""Whether checkpoints are intact: their files are those of ``manifest.json``, by size and sha256.

With several processes the main one asks here for all, so that each file is hashed once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pmf.checkpoint.places import MANIFEST, STATE, list_checkpoints
from pmf.errors import UserError
from pmf.files import file_sha256

T = TypeVar("T")


class DamageError(Exception):
    """What is wrong with a checkpoint's files, in part of a line."""


def require_intact(folder: Path) -> None:
    """Hash each file of a checkpoint and compare it with the manifest.

    Raises:
        UserError: something is missing, truncated or altered.
    """
    if problem := find_damage(folder):
        raise UserError(f"{folder}: {problem}; use an older checkpoint (--resume PATH)")


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Hashes each of them."""
    try:
        _check_all(folder)
    except DamageError as damage:
        return str(damage)
    return None


def find_resumable(run_folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint; ``warn`` is told about each damaged one that is passed over.

    Every file of it is hashed. With several processes, the main one calls this for all.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    advice = "start again in another training.output_dir, or repair one and name it with --resume PATH"
    return newest_intact(run_folder, warn, _check_all, advice)


def newest_intact(run_folder: Path, warn: Callable[[str], None], use: Callable[[Path], T], advice: str) -> T | None:
    """The result of ``use`` on the newest checkpoint for which it raises no :class:`DamageError`.

    Args:
        warn: is told about each damaged checkpoint that is passed over.
        advice: for the user, where all are damaged.

    Returns:
        None where there are no checkpoints.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    candidates = list_checkpoints(run_folder)
    for path in reversed(candidates):
        try:
            return use(path)
        except DamageError as damage:
            warn(f"{path}: {damage}; trying the one before")
    if candidates:
        raise UserError(f"{run_folder}: none of its {len(candidates)} checkpoints is intact; {advice}")
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint: file names to sizes and hashes.

    Raises:
        DamageError: it is missing or is not what :func:`pmf.checkpoint.storage.save_checkpoint` writes.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DamageError(f"has no {MANIFEST}, so it is not a complete checkpoint") from None
    except (ValueError, RecursionError):
        raise DamageError(f"{MANIFEST} is not valid JSON") from None
    except OSError as error:
        raise DamageError(f"{MANIFEST} cannot be read ({error.strerror or error})") from None
    if not isinstance(manifest, dict) or STATE not in manifest:
        raise DamageError(f"{MANIFEST} is damaged")
    for expected in manifest.values():
        if not isinstance(expected, dict) or expected.keys() != {"bytes", "sha256"}:
            raise DamageError(f"{MANIFEST} is damaged")
    return manifest


def _check_all(folder: Path) -> Path:
    """The folder, after checking every file of its manifest; raises DamageError."""
    for name, expected in read_manifest(folder).items():
        check_file(folder / name, expected)
    return folder


def check_file(path: Path, expected: Mapping[str, Any] | None) -> str:
    """The sha256 of a file, after comparing it with a manifest's entry if there is one.

    Raises:
        DamageError: it is missing or another file.
    """
    try:
        if not path.is_file():
            raise DamageError(f"{path.name} is missing")
        size = path.stat().st_size
        if expected is not None and size != expected["bytes"]:
            raise DamageError(f"{path.name} has {size} bytes instead of {expected['bytes']}")
        digest = file_sha256(path)
    except OSError as error:
        raise DamageError(f"{path.name} cannot be read ({error.strerror or error})") from None
    if expected is not None and digest != expected["sha256"]:
        raise DamageError(f"{path.name} does not match its sha256")
    return digest
