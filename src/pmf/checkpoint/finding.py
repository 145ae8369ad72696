"""Which files of weights are meant by a path and the name of an average, after checking just those."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmf.checkpoint.integrity import DamageError, check_file, newest_intact, read_manifest
from pmf.checkpoint.places import MANIFEST, PRETRAINED, STATE, WEIGHTS, run_or_checkpoint
from pmf.errors import UserError
from pmf.files import file_format, read_object

NO_CHECKPOINT = "this run has no checkpoint yet; training.checkpoint_every says when it writes one"


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights that was found and, where a manifest says how, checked.

    Attributes:
        sha256: of its bytes, in hex.
        average: ``online`` or the name of the average that it was chosen as; None for a file that a user named.
        averages: those that its checkpoint has, and ``online``; () for a file that a user named.
    """

    path: Path
    sha256: str
    average: str | None = None
    averages: tuple[str, ...] = ()


def find_weights(path: Path, wanted: Sequence[str | None]) -> list[WeightsFile]:
    """Find the files of several weights, all in one checkpoint: of a run, the newest in which these files are intact.

    Each is hashed once, and what was not asked for is not read. With several processes, the main one calls this for
    all.

    Args:
        path: a run folder, a checkpoint folder, a folder for the Hugging Face hub or one safetensors file; also what
            :func:`pmf.checkpoint.places.run_or_checkpoint` understands.
        wanted: of each, ``online`` or the name of an average, or None for what the run's config samples with.

    Raises:
        UserError: nothing there, damaged, or no such average (those there are listed).
    """
    path = run_or_checkpoint(path)
    if (path / PRETRAINED).is_file() and (path / WEIGHTS).is_file():
        path = path / WEIGHTS
    if path.is_file():
        return [_find_file(path, which) for which in wanted[:1]] * len(wanted)
    if (path / "checkpoints").is_dir():
        found = newest_intact(
            path,
            lambda message: print(f"warning: {message}"),
            lambda folder: _find_in(folder, read_manifest(folder), wanted),
            advice="repair or restore one",
        )
        if found is None:
            raise UserError(f"{path}: {NO_CHECKPOINT}")
        return found
    if (path / "config.yaml").is_file() and (path / "environment.json").is_file():
        raise UserError(f"{path}: {NO_CHECKPOINT}")
    try:
        manifest = read_manifest(path) if (path / MANIFEST).exists() else {}
        return _find_in(path, manifest, wanted)
    except DamageError as damage:
        raise UserError(f"{path}: {damage}; give another checkpoint") from None


def _find_file(path: Path, which: str | None) -> WeightsFile:
    if which is not None:
        raise UserError(f"{path}: is one file of weights; leave out --ema {which}, or give the folder it is in")
    if file_format(path) == "pytorch":
        raise UserError(
            f"{path}: is not a .safetensors file; an official checkpoint is read with its recipe "
            "(--config NAME; pmf configs lists them) or converted (python -m pmf.convert import)"
        )
    beside: dict[str, Any] = {}
    with contextlib.suppress(DamageError):  # a file that was copied has no manifest beside it
        beside = read_manifest(path.parent)
    try:
        return WeightsFile(path=path, sha256=check_file(path, beside.get(path.name)))
    except DamageError as damage:
        raise UserError(f"{path.parent}: {damage}; give another checkpoint") from None


def _find_in(folder: Path, manifest: Mapping[str, Any], wanted: Sequence[str | None]) -> list[WeightsFile]:
    """Files of a checkpoint folder; its manifest is empty where a user has copied some files without it."""
    there = manifest or dict.fromkeys(path.name for path in folder.glob("*"))
    averages = sorted(name[len("ema_") : -len(".safetensors")] for name in there if name.startswith("ema_"))
    choices = (*averages, "online")
    if not averages:
        raise UserError(f"{folder}: is neither a run folder, a checkpoint folder nor a .safetensors file")
    files: dict[str, WeightsFile] = {}
    names = []
    for which in wanted:
        average = _default_average(folder, there) if which is None else which
        name = f"{'model' if average == 'online' else f'ema_{average}'}.safetensors"
        if name not in there and (folder / name).exists():
            raise DamageError(f"{MANIFEST} is damaged")
        if name not in there:
            raise UserError(f"{folder}: has no average '{average}'; choose one of: {', '.join(choices)}")
        if name not in files:
            files[name] = WeightsFile(
                path=folder / name,
                sha256=check_file(folder / name, there[name]),
                average=average,
                averages=choices,
            )
        names.append(name)
    return [files[name] for name in names]


def _default_average(folder: Path, there: Mapping[str, Any]) -> str:
    """The name of the average that the config of a checkpoint samples with."""
    if STATE not in there:
        raise UserError(f"{folder}: has no {STATE} to say which average to take; name one with --ema")
    check_file(folder / STATE, there[STATE])
    state = read_object(folder / STATE, "name the average with --ema")
    try:
        return str(state["config"]["sampling"]["ema"])
    except (KeyError, TypeError):
        raise UserError(f"{folder / STATE}: does not say which average to sample; name one with --ema") from None
