"""A run explains itself: its curves, its strip of samples and its page, all made of what its folder holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pmf.errors import first_line
from pmf.report.curves import draw_curves, read_metrics
from pmf.report.facts import read_evaluations, read_facts
from pmf.report.page import is_ours, write_page
from pmf.report.strip import draw_strip

SHARE = 0.02
"""Of a run's time, what pictures that follow no evaluation may take."""
FIRST = 30.0
"""Seconds from which on such pictures are drawn."""


def write_report(run_folder: Path, *, pictures: bool = True) -> None:
    """Write ``curves.png``, ``samples/strip.png`` and ``README.md``, unless a page of the user's own stands there.

    Args:
        pictures: whether to draw; without, the page is written alone, in milliseconds.

    Raises:
        UserError: it is no run folder.
        OSError: something cannot be read or written.
    """
    facts = read_facts(run_folder)
    metrics = run_folder / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.exists() else []
    newest = max(records, key=lambda record: float(record["step"]), default=None)
    at = facts
    if newest is not None and newest["step"] > facts.step:  # logged since the newest checkpoint
        step = int(newest["step"])
        evaluations = read_evaluations(run_folder, step)
        at = replace(facts, step=step, images_seen=int(newest["images"]), evaluations=evaluations)
    if pictures:
        flat = getattr(facts.config.objective, "adaptive_power", None) == 1
        draw_curves(records, run_folder / "curves.png", flat_total=flat)
        draw_strip(run_folder / "samples", at.step)
    if is_ours(run_folder / "README.md"):
        write_page(run_folder, at, checkpoint_step=facts.step)


@dataclass
class RunReport:
    """The report of a run that goes on, whatever becomes of its report; a problem is told once.

    Attributes:
        warn: takes a line for the user.
    """

    run_folder: Path
    warn: Callable[[str], None]
    _told: set[str] = field(default_factory=set)
    _not_before: float = field(default_factory=lambda: time.monotonic() + FIRST)

    def write(self, *, evaluated: bool) -> None:
        """Write it, with its pictures after an evaluation or if ``SHARE`` of the run's time allows them."""
        self.end(pictures=evaluated or time.monotonic() >= self._not_before)

    def end(self, *, pictures: bool = True) -> None:
        """Write it in any case: the run ends or stops here.

        Args:
            pictures: see :func:`write_report`.
        """
        started = time.monotonic()
        try:
            write_report(self.run_folder, pictures=pictures)
        except Exception as error:  # a report is never worth a run
            problem = first_line(error)
            if problem not in self._told:
                self._told.add(problem)
                self.warn(f"warning: {self.run_folder}: curves.png and README.md cannot be written: {problem}")
        if pictures:
            self._not_before = started + (time.monotonic() - started) / SHARE
