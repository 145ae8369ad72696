"""Where checkpoints stand in a run folder, and what people mean by paths into it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from pmf.errors import UserError

# The files of a checkpoint that stand for all of it; each of the others is a set of tensors of its own.
MANIFEST, STATE = RECORDS = ("manifest.json", "state.json")
# Those of a folder for the Hugging Face hub.
PRETRAINED, WEIGHTS = "config.json", "model.safetensors"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; those that are being written or removed have other names."""
    folders = (run_folder / "checkpoints").glob("step_*")
    return sorted(path for path in folders if re.fullmatch(r"step_\d{8,}", path.name))


def run_or_checkpoint(path: Path) -> Path:
    """The run or checkpoint folder that a path into a run folder stands for; other paths as they are.

    ``RUN/latest`` is the checkpoint that it names, ``RUN/checkpoints`` is the run, and a record of a checkpoint is the
    checkpoint.

    Raises:
        UserError: ``latest`` names no checkpoint that is there.
    """
    if path.name == "latest" and path.is_file() and (path.parent / "checkpoints").is_dir():
        named = ""
        with contextlib.suppress(OSError):
            named = path.read_text(errors="replace").strip()
        if not named.startswith("checkpoints/step_") or not (path.parent / named).is_dir():
            raise UserError(f"{path}: names no checkpoint that is there; give the run folder {path.parent}")
        return path.parent / named
    if path.name in RECORDS and all((path.parent / record).is_file() for record in RECORDS):
        return path.parent
    absolute = path.absolute()
    if absolute.name == "checkpoints" and any(absolute.glob("step_*")):
        return path.parent if path.name else absolute.parent
    return path
