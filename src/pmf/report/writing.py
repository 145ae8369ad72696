"""A run explains itself: its curves, its strip of samples and its page, all made of what its folder holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pmf.report.curves import draw_curves, read_metrics
from pmf.report.facts import read_evaluations, read_facts
from pmf.report.page import is_ours, write_page
from pmf.report.strip import draw_strip

SHARE, FIRST = 0.02, 20.0
"""Of a run's time, what its report may take; and the seconds that a run goes on without one."""


def write_report(run_folder: Path) -> None:
    """Write ``curves.png``, ``samples/strip.png`` and ``README.md``, unless a page of the user's own stands there.

    Raises:
        UserError: it is no run folder.
        OSError: something cannot be read or written.
    """
    facts = read_facts(run_folder)
    metrics = run_folder / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.exists() else []
    draw_curves(records, run_folder / "curves.png")
    newest = max(records, key=lambda record: float(record["step"]), default=None)
    at = facts
    if newest is not None and newest["step"] > facts.step:  # logged since the newest checkpoint
        step = int(newest["step"])
        evaluations = read_evaluations(run_folder, step)
        at = replace(facts, step=step, images_seen=int(newest["images"]), evaluations=evaluations)
    draw_strip(run_folder / "samples", at.step)
    if is_ours(run_folder / "README.md"):
        write_page(run_folder, at, checkpoint_step=facts.step)


@dataclass
class RunReport:
    """The report of a run that goes on, whatever becomes of its report.

    Attributes:
        warn: takes a line for the user.
    """

    run_folder: Path
    warn: Callable[[str], None]
    _told: set[str] = field(default_factory=set)
    _not_before: float = field(default_factory=lambda: time.monotonic() + FIRST)

    def write(self, *, last: bool = False) -> None:
        """Write it, unless the run would spend more than ``SHARE`` of its time on that; what goes wrong is told once.

        Args:
            last: the run ends or stops here, so that it is written in any case.
        """
        started = time.monotonic()
        if started < self._not_before and not last:
            return
        try:
            write_report(self.run_folder)
        except Exception as error:  # a report is never worth a run
            problem = str(error).strip().partition("\n")[0] or type(error).__name__
            if problem not in self._told:
                self._told.add(problem)
                self.warn(f"warning: {self.run_folder}: curves.png and README.md cannot be written: {problem}")
        self._not_before = started + (time.monotonic() - started) / SHARE
