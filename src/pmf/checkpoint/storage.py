"""Checkpoints that are complete or absent.

``checkpoints/step_00001000/`` holds model, averages and optimizer as safetensors, ``state.json`` and
``manifest.json`` with size and sha256 of every file. It is written under a temporary name, flushed to disk and renamed;
``latest`` names the newest. The layout knows nothing of the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pmf.checkpoint.integrity import (
    MANIFEST,
    STATE,
    WeightsFile,
    find_damage,
    find_weights,
    list_checkpoints,
    require_intact,
)
from pmf.config.sections import Config, as_plain
from pmf.config.yaml_file import config_from_plain
from pmf.distributed.shards import placed_like
from pmf.distributed.world import ALONE, World
from pmf.errors import UserError
from pmf.files import (
    RIGHTS,
    complete_or_absent,
    file_sha256,
    flush,
    printable,
    read_object,
    storage_advice,
    storage_reason,
)
from pmf.net.base import BaseNetwork
from pmf.tensors import read_safetensors, require_finite, require_same_tensors, save_safetensors


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a run continues from.

    Attributes:
        tensors: file stem (``model``, ``ema_500``, ``optimizer``) to named tensors.
        state: plain values: step, images seen, config, and what the loop adds.
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SavedWeights:
    """Weights of one file and the config they were trained with; ``source`` names them for records.

    Attributes:
        sha256: of the file; of names and values where the checkpoint is not one file.
        average: ``online`` or the name of the average they were chosen as; None for a file that is what it is.
    """

    weights: dict[str, Tensor]
    config: Config
    source: str
    sha256: str
    average: str | None


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write, publish as ``latest``, then prune to the newest ``keep``. Called by one process.

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
            shutil.rmtree(temporary)  # this step is saved already: never is there a moment without it
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


def _remove(checkpoint: Path) -> None:
    """Delete one that is complete until it is out of sight; of what a killed process leaves, the next save disposes."""
    hidden = checkpoint.with_name(f".incomplete_removed_{checkpoint.name}")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Check every file of a checkpoint against the manifest, then read it.

    Raises:
        UserError: something is missing, truncated or altered.
    """
    require_intact(folder)
    return read_checkpoint(folder)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that has been found intact, by this process or by the main one.

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


def load_weights(path: Path, which: str | None, world: World = ALONE) -> SavedWeights:
    """Weights for sampling, from a run folder, a checkpoint folder or one safetensors file, whatever its name.

    Called by all processes; the main one finds and checks the file.

    Args:
        path: also what :func:`pmf.checkpoint.places.run_or_checkpoint` understands.
        which: ``online`` or the name of an average; None is what the run's config samples with. A single file is
            what it is.

    Raises:
        UserError: nothing there, damaged, or no such average (those there are listed).
    """
    (file,) = world.ask_main(lambda: find_weights(path, [which]))
    return read_weights(file)


def read_weights(file: WeightsFile) -> SavedWeights:
    """Read a file that :func:`find_weights` has found, in this process or in the main one.

    Raises:
        UserError: it cannot be read, or carries no config.
    """
    path = file.path
    try:
        weights, metadata = read_safetensors(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read any more ({error}); a run that goes on removes its old checkpoints: give a copy"
        ) from None
    config = recorded_config(metadata, str(path))
    if config is None:
        raise UserError(
            f"{path}: carries no config, so it was not written by this library's training; give the recipe of its "
            "network: --config configs/NAME.yaml"
        )
    source = printable(f"{path.parent.name}/{path.name} {file.sha256[:16]}")
    return SavedWeights(weights=weights, config=config, source=source, sha256=file.sha256, average=file.average)


def recorded_config(metadata: Mapping[str, str], where: str) -> Config | None:
    """The config that a safetensors file of ours carries; None for those of others. ``where`` names it in errors."""
    try:
        values = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError):
        return None
    return config_from_plain(values, where) if isinstance(values, dict) else None


def save_weights(path: Path, weights: Mapping[str, Tensor], config: Config) -> None:
    """Write one ``.safetensors`` file that carries its config, as :func:`load_weights` reads it."""
    with complete_or_absent(path) as temporary:
        save_safetensors(weights, temporary, {"config": json.dumps(as_plain(config))})


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a module. A network built for inference is also given those that only training uses.

    Raises:
        UserError: names the first missing or differing tensors, or the first with values that are not finite.
    """
    own = module.state_dict()
    spare = {name for name in weights if isinstance(module, BaseNetwork) and module.is_training_only(name)} - own.keys()
    kept = {name: tensor for name, tensor in weights.items() if name not in spare}
    require_same_tensors(
        own,
        kept,
        intro=f"{where}: weights of another network",
        advice="check model.name, data.image_size and data.num_classes",
    )
    require_finite(weights, intro=where, advice="such weights make no images; choose an older checkpoint")
    module.load_state_dict({name: placed_like(own[name], tensor) for name, tensor in kept.items()})


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The first 16 hex digits of :func:`tensors_sha256`."""
    return tensors_sha256(tensors)[:16]


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Over names and values, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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


def _point_latest_at(run_folder: Path, checkpoint: Path) -> None:
    with complete_or_absent(run_folder / "latest") as temporary:
        temporary.write_text(f"{checkpoint.relative_to(run_folder)}\n")
