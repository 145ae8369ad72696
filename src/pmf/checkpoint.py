"""Checkpoints that are complete or absent.

``checkpoints/step_00001000/`` holds model, averages and optimizer as safetensors, ``state.json`` and
``manifest.json`` with size and sha256 of every file. It is written under a temporary name, flushed to disk and renamed;
``latest`` names the newest. The layout knows nothing of the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pmf.config import Config, as_plain
from pmf.configfile import config_from_plain
from pmf.errors import UserError
from pmf.files import complete_or_absent, file_format, file_sha256, flush
from pmf.parallel import placed_like
from pmf.places import run_or_checkpoint
from pmf.safetensors_file import read_safetensors, save_safetensors
from pmf.storage import RIGHTS, printable, storage_advice, storage_reason
from pmf.strict import require_same_tensors

MANIFEST = "manifest.json"
STATE = "state.json"


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
    """

    weights: dict[str, Tensor]
    config: Config
    source: str
    sha256: str


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write, publish as ``latest``, then prune to the newest ``keep``. Called by one process.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk is full or fails; the checkpoints before this one are untouched.
    """
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
    """Read a checkpoint after checking every file against the manifest.

    Raises:
        UserError: something is missing, truncated or altered.
    """
    problem = find_damage(folder)
    if problem:
        raise UserError(f"{folder}: {problem}; use an older checkpoint (--resume PATH)")
    tensors = {path.stem: read_safetensors(path)[0] for path in sorted(folder.glob("*.safetensors"))}
    return Checkpoint(tensors=tensors, state=json.loads((folder / STATE).read_text()))


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    manifest_path = folder / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text())
    except OSError:
        return f"has no {MANIFEST}, so it is not a complete checkpoint"
    except ValueError:
        return f"{MANIFEST} is not valid JSON"
    if not isinstance(manifest, dict) or STATE not in manifest:
        return f"{MANIFEST} is damaged"
    for name, expected in manifest.items():
        path = folder / name
        if not isinstance(expected, dict) or expected.keys() != {"bytes", "sha256"}:
            return f"{MANIFEST} is damaged"
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if file_sha256(path) != expected["sha256"]:
            return f"{name} does not match its sha256"
    return None


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Published checkpoints, oldest first."""
    folders = (run_folder / "checkpoints").glob("step_*")
    return sorted(path for path in folders if re.fullmatch(r"step_\d{8,}", path.name))


def find_resumable(run_folder: Path, warn: Any) -> Path | None:
    """The newest undamaged checkpoint; ``warn`` is told about each damaged one that is passed over.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    candidates = list_checkpoints(run_folder)
    for path in reversed(candidates):
        problem = find_damage(path)
        if problem is None:
            return path
        warn(f"{path}: {problem}; trying the one before")
    if candidates:
        raise UserError(
            f"{run_folder}: none of its {len(candidates)} checkpoints is intact; "
            "start again in another training.output_dir, or repair one and name it with --resume PATH"
        )
    return None


def load_weights(path: Path, which: str | None) -> SavedWeights:
    """Weights for sampling, from a run folder, a checkpoint folder or one safetensors file, whatever its name.

    Args:
        path: also what :func:`run_or_checkpoint` understands.
        which: ``online`` or the name of an average; None is what the run's config samples with. A single file is
            what it is.

    Raises:
        UserError: nothing there, or no such average (those there are listed).
    """
    path = run_or_checkpoint(path)
    if path.is_file() and which is not None:
        raise UserError(f"{path}: is one file of weights; leave out --ema {which}, or give the folder it is in")
    file = path if path.is_file() else _weights_file(path, which)
    if file_format(file) == "pytorch":
        raise UserError(
            f"{file}: is not a .safetensors file; an official checkpoint is read with its recipe "
            "(eval.py sample --config configs/NAME.yaml) or converted (python -m pmf.convert import)"
        )
    weights, metadata = read_safetensors(file)
    config = recorded_config(metadata, str(file))
    if config is None:
        raise UserError(
            f"{file}: carries no config, so it was not written by this library's training; give the recipe of its "
            "network: --config configs/NAME.yaml"
        )
    digest = file_sha256(file)
    source = printable(f"{file.parent.name}/{file.name} {digest[:16]}")
    return SavedWeights(weights=weights, config=config, source=source, sha256=digest)


def recorded_config(metadata: Mapping[str, str], where: str) -> Config | None:
    """The config that a safetensors file of ours carries; None for those of others. ``where`` names it in errors."""
    try:
        values = json.loads(metadata["config"])
    except (KeyError, ValueError):
        return None
    return config_from_plain(values, where) if isinstance(values, dict) else None


def save_weights(path: Path, weights: Mapping[str, Tensor], config: Config) -> None:
    """Write one ``.safetensors`` file that carries its config, as :func:`load_weights` reads it."""
    with complete_or_absent(path) as temporary:
        save_safetensors(weights, temporary, {"config": json.dumps(as_plain(config))})


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a module; those of a head that it does not have may be left over.

    Raises:
        UserError: names the first missing or differing tensors.
    """
    own = module.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if name in own or not name.startswith("v_")}
    require_same_tensors(
        own,
        kept,
        intro=f"{where}: weights of another network",
        advice="check model.name, data.image_size and data.num_classes",
    )
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


def _weights_file(path: Path, which: str | None) -> Path:
    folder = path
    if (path / "checkpoints").is_dir():
        found = find_resumable(path, lambda message: print(f"warning: {message}"))
        if found is None:
            raise UserError(f"{path}: this run has no checkpoint yet")
        folder = found
    if which is None and (folder / STATE).exists():
        which = json.loads((folder / STATE).read_text())["config"]["sampling"]["ema"]
    stem = "model" if which == "online" else f"ema_{which}"
    file = folder / f"{stem}.safetensors"
    if not file.exists():
        there = sorted(p.stem.removeprefix("ema_") for p in folder.glob("ema_*.safetensors"))
        if not there:
            raise UserError(f"{path}: is neither a run folder, a checkpoint folder nor a .safetensors file")
        raise UserError(f"{folder}: has no average '{which}'; choose one of: {', '.join((*there, 'online'))}")
    return file


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
