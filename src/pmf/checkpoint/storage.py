"""Checkpoints: folders that are complete or absent, with everything a run continues from.

``checkpoints/step_00001000/`` holds model, averages and optimizer as safetensors, ``state.json`` and
``manifest.json`` with size and sha256 of every file. It is written under a temporary name, flushed to disk and renamed;
``latest`` names the newest. Nothing in it depends on the number of processes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pmf.checkpoint.integrity import find_damage
from pmf.checkpoint.places import MANIFEST, STATE, list_checkpoints
from pmf.errors import UserError
from pmf.files import (
    RIGHTS,
    complete_or_absent,
    file_sha256,
    flush,
    read_object,
    storage_advice,
    storage_reason,
)
from pmf.tensors import read_safetensors, require_finite, save_safetensors


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a run continues from.

    Attributes:
        tensors: file stem (``model``, ``ema_500``, ``optimizer``) to named tensors.
        state: plain values: step, images seen, config, and what the loop adds.
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint, make it ``latest``, then remove all but the newest ``keep``. Called by one process.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk is full or fails, or a value is not finite; the checkpoints before are untouched.
    """
    for stem, tensors in checkpoint.tensors.items():
        require_finite(
            tensors,
            intro=f"step {checkpoint.state['step']}: {stem}",
            advice="such a checkpoint is not written, and those before it are intact: lower optimizer.lr or set "
            "training.gradient_clip, and start the same command again",
        )
    folder = run_folder / "checkpoints"
    final = folder / f"step_{checkpoint.state['step']:08d}"
    temporary = folder / f".incomplete_{final.name}"
    try:
        for left_over in folder.glob(".incomplete_*"):  # of processes that were killed
            shutil.rmtree(left_over, ignore_errors=True)  # a network file system keeps what another process has open
        temporary.mkdir(parents=True)
        manifest = _write_durably(temporary, checkpoint)
        if (final / MANIFEST).exists() and (final / MANIFEST).read_bytes() == manifest and find_damage(final) is None:
            shutil.rmtree(temporary)  # this step is saved already, and stays readable all the time
        else:
            if final.exists():  # damaged, or of another history of this run
                _remove(final)
            temporary.rename(final)
        flush(folder)
        _point_latest_at(run_folder, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # its space may be all that there was
        advice = storage_advice(error, RIGHTS)
        raise UserError(
            f"{final}: this checkpoint cannot be written ({storage_reason(error)}); those before it are intact: "
            f"{advice} and start the same command again"
        ) from None
    for old in list_checkpoints(run_folder)[:-keep]:
        with contextlib.suppress(OSError):
            _remove(old)
    return final


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that has been found intact, by this process or by the main one; see pmf.checkpoint.integrity.

    Raises:
        UserError: the files are not there or cannot be read.
    """
    advice = "all processes must see the run folder: put it on storage that they share"
    names = sorted(read_object(folder / MANIFEST, advice))
    try:
        files = [folder / name for name in names if name.endswith(".safetensors")]
        tensors = {path.stem: read_safetensors(path)[0] for path in files}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error}); {advice}") from None
    return Checkpoint(tensors=tensors, state=read_object(folder / STATE, advice))


def _write_durably(folder: Path, checkpoint: Checkpoint) -> bytes:
    """All files of a checkpoint, flushed to disk; returns the manifest."""
    metadata = {"config": json.dumps(checkpoint.state["config"])}
    for stem, tensors in checkpoint.tensors.items():
        save_safetensors(tensors, folder / f"{stem}.safetensors", metadata)
    (folder / STATE).write_text(json.dumps(checkpoint.state, indent=1))
    files = sorted(folder.iterdir())
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files}
    manifest = json.dumps(entries, indent=1).encode()
    (folder / MANIFEST).write_bytes(manifest)
    for path in (*files, folder / MANIFEST, folder):
        flush(path)
    return manifest


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that no one sees a part of it. The next save removes left-overs."""
    hidden = checkpoint.with_name(f".incomplete_removed_{checkpoint.name}")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _point_latest_at(run_folder: Path, checkpoint: Path) -> None:
    with complete_or_absent(run_folder / "latest") as temporary:
        temporary.write_text(f"{checkpoint.relative_to(run_folder)}\n")
