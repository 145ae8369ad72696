"""Where metrics go: ``metrics.jsonl`` always, and the trackers that the config names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmf.config.sections import Config
from pmf.files import RIGHTS, complete_or_absent, writing
from pmf.training.trackers import Trackers


class MetricsLog:
    """Appends one JSON object per line. After a resume, lines of steps that will be done again are dropped first."""

    def __init__(self, run_folder: Path, config: Config, resumed_step: int, warn: Callable[[str], None]) -> None:
        """Open all.

        Raises:
            UserError: ``metrics.jsonl`` cannot be written.
        """
        self.path = run_folder / "metrics.jsonl"
        with writing(str(self.path), RIGHTS, again=True):
            self._keep_until(resumed_step)
        self._trackers = Trackers(run_folder, config, resumed_step, warn)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Log one record; it must have a ``step``.

        Raises:
            UserError: the disk is full or fails.
        """
        with writing(str(self.path), RIGHTS, again=True), self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        self._trackers.log(metrics)

    def show_samples(self, path: Path, step: int) -> None:
        """Give a grid of samples to the trackers; it stays where it is."""
        self._trackers.log_image("samples", path, step)

    def close(self) -> None:
        """End the trackers' runs; waits for them for a limited time."""
        self._trackers.finish()

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
        with complete_or_absent(self.path) as temporary:
            temporary.write_text("".join(kept), errors="surrogateescape")
