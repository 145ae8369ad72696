"""Where metrics go: ``metrics.jsonl`` always, Weights & Biases on request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmf.config import Config, as_plain


class MetricsLog:
    """Appends one JSON object per line. After a resume, lines of steps that will be done again are dropped first."""

    def __init__(self, run_folder: Path, config: Config, resumed_step: int) -> None:
        self.path = run_folder / "metrics.jsonl"
        self._keep_until(resumed_step)
        self.wandb = None
        if config.tracking.wandb:
            import wandb

            name = config.tracking.name or run_folder.name
            self.wandb = wandb.init(
                project=config.tracking.project, name=name, config=as_plain(config), dir=run_folder, resume="allow"
            )

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Log one record; it must have a ``step``."""
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self.wandb is not None:
            self.wandb.log(dict(metrics), step=metrics["step"])

    def close(self) -> None:
        """Finish the remote run, if there is one."""
        if self.wandb is not None:
            self.wandb.finish()

    def _keep_until(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the torn last line of a killed process
            if record["step"] <= step:
                kept.append(line)
        temporary = self.path.with_name(".metrics.jsonl")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)
