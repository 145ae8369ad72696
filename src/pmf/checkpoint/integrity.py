"""Which checkpoints of a run, and which of their files, are intact.

``manifest.json`` holds size and sha256 of every file. With several processes the main one asks here for all, so that
each file is hashed once; what nobody is about to read is not hashed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pmf.checkpoint.places import MANIFEST, STATE, run_or_checkpoint
from pmf.errors import UserError
from pmf.files import file_format, file_sha256, read_object

T = TypeVar("T")


class _DamageError(Exception):
    """What is wrong with a checkpoint's files."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights that was found and, where a manifest says how, checked.

    Attributes:
        sha256: of its bytes, in hex.
        average: ``online`` or the name of the average that it was chosen as; None for a file that a user named.
    """

    path: Path
    sha256: str
    average: str | None = None


def require_intact(folder: Path) -> None:
    """See :func:`find_damage`.

    Raises:
        UserError: something is missing, truncated or altered.
    """
    if problem := find_damage(folder):
        raise UserError(f"{folder}: {problem}; use an older checkpoint (--resume PATH)")


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Hashes each of them."""
    try:
        _check_all(folder)
    except _DamageError as damage:
        return str(damage)
    return None


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Published checkpoints, oldest first."""
    folders = (run_folder / "checkpoints").glob("step_*")
    return sorted(path for path in folders if re.fullmatch(r"step_\d{8,}", path.name))


def find_resumable(run_folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint; ``warn`` is told about each damaged one that is passed over.

    Every file of it is hashed. With several processes, the main one calls this for all.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    advice = "start again in another training.output_dir, or repair one and name it with --resume PATH"
    return _newest(run_folder, warn, _check_all, advice)


def find_weights(path: Path, wanted: Sequence[str | None]) -> list[WeightsFile]:
    """The files of several weights, all of one checkpoint: of a run, the newest in which these files are intact.

    Each is hashed once, and what was not asked for is not read. With several processes, the main one calls this for
    all.

    Args:
        path: a run folder, a checkpoint folder or one safetensors file; also what
            :func:`pmf.checkpoint.places.run_or_checkpoint` understands.
        wanted: of each, ``online`` or the name of an average, or None for what the run's config samples with.

    Raises:
        UserError: nothing there, damaged, or no such average (those there are listed).
    """
    path = run_or_checkpoint(path)
    if path.is_file():
        return [_find_file(path, which) for which in wanted[:1]] * len(wanted)
    if (path / "checkpoints").is_dir():
        found = _newest(
            path,
            lambda message: print(f"warning: {message}"),
            lambda folder: _find_in(folder, _read_manifest(folder), wanted),
            advice="repair or restore one",
        )
        if found is None:
            raise UserError(f"{path}: this run has no checkpoint yet")
        return found
    try:
        manifest = _read_manifest(path) if (path / MANIFEST).exists() else {}
        return _find_in(path, manifest, wanted)
    except _DamageError as damage:
        raise UserError(f"{path}: {damage}; give another checkpoint") from None


def _newest(run_folder: Path, warn: Callable[[str], None], use: Callable[[Path], T], advice: str) -> T | None:
    """What ``use`` makes of the newest checkpoint in which it finds no damage; None where there are no checkpoints."""
    candidates = list_checkpoints(run_folder)
    for path in reversed(candidates):
        try:
            return use(path)
        except _DamageError as damage:
            warn(f"{path}: {damage}; trying the one before")
    if candidates:
        raise UserError(f"{run_folder}: none of its {len(candidates)} checkpoints is intact; {advice}")
    return None


def _find_file(path: Path, which: str | None) -> WeightsFile:
    if which is not None:
        raise UserError(f"{path}: is one file of weights; leave out --ema {which}, or give the folder it is in")
    if file_format(path) == "pytorch":
        raise UserError(
            f"{path}: is not a .safetensors file; an official checkpoint is read with its recipe "
            "(eval.py sample --config configs/NAME.yaml) or converted (python -m pmf.convert import)"
        )
    beside: dict[str, Any] = {}
    with contextlib.suppress(_DamageError):  # a file that was copied has no manifest beside it
        beside = _read_manifest(path.parent)
    try:
        return WeightsFile(path=path, sha256=_check(path, beside.get(path.name)))
    except _DamageError as damage:
        raise UserError(f"{path.parent}: {damage}; give another checkpoint") from None


def _find_in(folder: Path, manifest: Mapping[str, Any], wanted: Sequence[str | None]) -> list[WeightsFile]:
    """Files of a checkpoint folder; its manifest is empty where a user has copied some files without it."""
    there = manifest or dict.fromkeys(path.name for path in folder.glob("*"))
    averages = sorted(name[len("ema_") : -len(".safetensors")] for name in there if name.startswith("ema_"))
    if not averages:
        raise UserError(f"{folder}: is neither a run folder, a checkpoint folder nor a .safetensors file")
    files: dict[str, WeightsFile] = {}
    names = []
    for which in wanted:
        average = _default_average(folder, there) if which is None else which
        name = f"{'model' if average == 'online' else f'ema_{average}'}.safetensors"
        if name not in there and (folder / name).exists():
            raise _DamageError(f"{MANIFEST} is damaged")
        if name not in there:
            raise UserError(f"{folder}: has no average '{average}'; choose one of: {', '.join((*averages, 'online'))}")
        if name not in files:
            files[name] = WeightsFile(path=folder / name, sha256=_check(folder / name, there[name]), average=average)
        names.append(name)
    return [files[name] for name in names]


def _default_average(folder: Path, there: Mapping[str, Any]) -> str:
    """What the config of a checkpoint samples with."""
    if STATE not in there:
        raise UserError(f"{folder}: has no {STATE} to say which average to take; name one with --ema")
    _check(folder / STATE, there[STATE])
    state = read_object(folder / STATE, "name the average with --ema")
    try:
        return str(state["config"]["sampling"]["ema"])
    except (KeyError, TypeError):
        raise UserError(f"{folder / STATE}: does not say which average to sample; name one with --ema") from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    """File names to sizes and hashes.

    Raises:
        _DamageError: it is missing or is not what :func:`save_checkpoint` writes.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise _DamageError(f"has no {MANIFEST}, so it is not a complete checkpoint") from None
    except (ValueError, RecursionError):
        raise _DamageError(f"{MANIFEST} is not valid JSON") from None
    except OSError as error:
        raise _DamageError(f"{MANIFEST} cannot be read ({error.strerror or error})") from None
    if not isinstance(manifest, dict) or STATE not in manifest:
        raise _DamageError(f"{MANIFEST} is damaged")
    for expected in manifest.values():
        if not isinstance(expected, dict) or expected.keys() != {"bytes", "sha256"}:
            raise _DamageError(f"{MANIFEST} is damaged")
    return manifest


def _check_all(folder: Path) -> Path:
    """Returns the folder; raises _DamageError."""
    for name, expected in _read_manifest(folder).items():
        _check(folder / name, expected)
    return folder


def _check(path: Path, expected: Mapping[str, Any] | None) -> str:
    """The sha256 of a file, after comparing it with a manifest's entry if there is one.

    Raises:
        _DamageError: it is missing or another file.
    """
    try:
        if not path.is_file():
            raise _DamageError(f"{path.name} is missing")
        size = path.stat().st_size
        if expected is not None and size != expected["bytes"]:
            raise _DamageError(f"{path.name} has {size} bytes instead of {expected['bytes']}")
        digest = file_sha256(path)
    except OSError as error:
        raise _DamageError(f"{path.name} cannot be read ({error.strerror or error})") from None
    if expected is not None and digest != expected["sha256"]:
        raise _DamageError(f"{path.name} does not match its sha256")
    return digest
