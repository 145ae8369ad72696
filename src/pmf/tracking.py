"""Where metrics go: ``metrics.jsonl`` always, Weights & Biases on request. The latter never ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmf.config import Config, as_plain
from pmf.errors import UserError

TIMEOUT = 30.0
"""Seconds to wait for Weights & Biases when a run begins, and again when it ends."""


class MetricsLog:
    """Appends one JSON object per line. After a resume, lines of steps that will be done again are dropped first."""

    def __init__(self, run_folder: Path, config: Config, resumed_step: int, warn: Callable[[str], None]) -> None:
        self.path = run_folder / "metrics.jsonl"
        self._warn = warn
        self._keep_until(resumed_step)
        self.wandb = _start_wandb(run_folder, config, warn) if config.tracking.wandb else None

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Log one record; it must have a ``step``.

        Raises:
            UserError: the disk is full or fails.
        """
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); make room and start the same command again"
            ) from None
        if self.wandb is not None:
            try:
                self.wandb.log(dict(metrics), step=metrics["step"])
            except Exception as error:  # whatever a tracker does, training goes on
                self._warn(f"warning: tracking.wandb: stopped ({_first_line(error)}); metrics go on in {self.path}")
                self.wandb = None

    def close(self) -> None:
        """Finish the remote run, if there is one."""
        if self.wandb is not None:
            self.wandb.finish()

    def _keep_until(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(errors="surrogateescape").splitlines(keepends=True):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the torn last line of a killed process
            done = record.get("step") if isinstance(record, dict) else None
            if not isinstance(done, int | float) or done <= step:  # what is not ours stays
                kept.append(line)
        temporary = self.path.with_name(".metrics.jsonl")
        temporary.write_text("".join(kept), errors="surrogateescape")
        temporary.replace(self.path)


def wandb_problem() -> str | None:
    """Why Weights & Biases would log offline on this machine, as far as can be told without asking its server."""
    import wandb  # takes a second

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun") or wandb.login(prompt=False, verify=False):
        return None
    return "there is no login; run `wandb login` or set WANDB_API_KEY"


def _start_wandb(run_folder: Path, config: Config, warn: Callable[[str], None]) -> Any:
    """A run that is online if that can be had within ``TIMEOUT``, and offline otherwise."""
    import wandb

    def start(**mode: Any) -> Any:
        return wandb.init(
            project=config.tracking.project,
            name=config.tracking.name or run_folder.name,
            config=as_plain(config),
            dir=run_folder,
            resume="allow",
            settings=wandb.Settings(init_timeout=TIMEOUT, finish_timeout=TIMEOUT),
            **mode,
        )

    problem = wandb_problem()
    if problem is None:
        try:
            return start()
        except wandb.Error as error:
            problem = _first_line(error)
    upload = f"wandb sync {run_folder}/wandb/offline-run-*"
    warn(f"warning: tracking.wandb: {problem}; logging offline, upload later with `{upload}`")
    return start(mode="offline")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
