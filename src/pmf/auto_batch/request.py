"""What ``auto_batch.py`` was asked; needs no torch, so that a mistake in it is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.errors import UserError

MICRO, GLOBAL = "training.micro_batch_size", "training.global_batch_size"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for.

    Attributes:
        overrides: ``section.key=value``. They hold for the trials; of them, only a global batch size is written.
        device_memory: bytes; on a GPU an upper limit, without one the size of a device to estimate for.
    """

    config_path: Path
    overrides: Sequence[str]
    device_memory: int | None
    dry_run: bool

    def load(self) -> Config:
        """The config of the trials, with micro-batches of one image.

        Raises:
            UserError: it is not valid, or says what is to be found.
        """
        if any(override.startswith(f"{MICRO}=") for override in self.overrides):
            raise UserError(f"command line: {MICRO} is what this command finds; leave it out")
        return load_config(self.config_path, [*self.overrides, f"{MICRO}=1"])
