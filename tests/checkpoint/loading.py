"""A checkpoint as resuming reads it, in one call."""

from __future__ import annotations

from pathlib import Path

from pmf.checkpoint.integrity import require_intact
from pmf.checkpoint.storage import Checkpoint, read_checkpoint


def load_checkpoint(folder: Path) -> Checkpoint:
    """Check every file of a checkpoint against the manifest, then read it."""
    require_intact(folder)
    return read_checkpoint(folder)
