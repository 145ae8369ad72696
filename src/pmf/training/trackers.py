"""Experiment trackers beside ``metrics.jsonl``, by Accelerate's interface. None ends a run, and none makes it wait.

Each is used from a thread of its own: the service behind it may fail or stop to answer at any time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker
from PIL import Image

from pmf.config.sections import TRACKERS, Config, as_plain
from pmf.errors import first_line
from pmf.files import printable
from pmf.tables import find_row

TIMEOUT = 30.0
"""Seconds to wait for an answer of a tracker's service; a start may take four of these, and an end two."""
FAILURES = (Exception, SystemExit)
"""What a tracker may raise."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of its run; the rows of ``TRACKERS`` take one, and return a tracker not yet started.

    Attributes:
        folder: of the run.
        resumed_step: what the run continues from; 0 for a fresh start.
        warn: takes a line for the user, from any thread.
    """

    folder: Path
    config: Config
    resumed_step: int
    warn: Callable[[str], None]

    @property
    def project(self) -> str:
        """What it belongs to."""
        return printable(self.config.tracking.project)

    @property
    def name(self) -> str:
        """What it is called."""
        return printable(self.config.tracking.name or self.folder.absolute().name)


class Trackers:
    """The trackers that a config names; on the main rank alone. Everything but the end returns at once."""

    def __init__(self, run_folder: Path, config: Config, resumed_step: int, warn: Callable[[str], None]) -> None:
        """Start them; one that cannot be had is told in a line."""
        self._warn = warn
        self._metrics = run_folder / "metrics.jsonl"
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._opened = time.monotonic()
        for name in config.tracking.trackers:
            run = TrackedRun(
                folder=run_folder, config=config, resumed_step=resumed_step, warn=_with_prefix(self._lines.put, name)
            )
            try:
                self._workers.append(_Worker(name, find_row(TRACKERS, name)(run), run))
            except FAILURES as error:
                self._leave(name, first_line(error))

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One record with its ``step``."""
        values = {key: value for key, value in metrics.items() if key != "step"}
        self._ask(lambda tracker: tracker.log(values, step=metrics["step"]))

    def log_image(self, name: str, path: Path, step: int) -> None:
        """A file with an image, which stays there."""

        def send(tracker: Any) -> None:
            if hasattr(tracker, "log_images"):  # Accelerate's interface leaves them out
                with Image.open(path) as image:
                    tracker.log_images({name: [np.asarray(image.convert("RGB"))]}, step=step)

        self._ask(send)

    def finish(self) -> None:
        """Send the rest and end the runs, or give up after a limited time."""
        self._ask(None)
        limit = 2 * TIMEOUT
        if not all(worker.started for worker in self._workers):  # a start may be an attempt online and another offline
            limit += max(self._opened + 4 * TIMEOUT - time.monotonic(), 0)
        deadline = time.monotonic() + limit
        for worker in self._workers:
            worker.thread.join(max(deadline - time.monotonic(), 0))
            if worker.thread.is_alive():
                worker.problem = f"no answer within {limit:.2g} seconds"
        self._tell()

    def _ask(self, job: Callable[[Any], None] | None) -> None:
        for worker in self._workers:
            worker.jobs.put(job)
        self._tell()

    def _tell(self) -> None:
        """Pass on what the threads have to say, and let go of those that are lost."""
        while not self._lines.empty():
            self._warn(self._lines.get())
        for worker in [worker for worker in self._workers if worker.problem]:
            self._workers.remove(worker)
            self._leave(worker.name, str(worker.problem))
            if let_go := getattr(worker.tracker, "let_go", None):
                let_go(1)

    def _leave(self, name: str, problem: str) -> None:
        _with_prefix(self._warn, name)(f"{problem}; the run goes on without it, and its metrics are in {self._metrics}")


class _Worker:
    """The thread of one tracker.

    Attributes:
        jobs: what the tracker is still to be asked; None ends it.
        started: whether it has begun to take them.
        problem: why the tracker is lost, once it is.
    """

    def __init__(self, name: str, tracker: GeneralTracker, run: TrackedRun) -> None:
        self.name, self.tracker = name, tracker
        self.jobs: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self.started = False
        self.problem: str | None = None
        self._run = run
        self.thread = threading.Thread(target=self._work, daemon=True, name=name)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.tracker.start()
            self.tracker.store_init_configuration(flat_config(self._run.config))
            self.started = True
            while (job := self.jobs.get()) is not None:
                job(self.tracker)
            self.tracker.finish()
        except FAILURES as error:
            self.problem = first_line(error)


def flat_config(config: Config) -> dict[str, Any]:
    """The values of a config by their dotted keys: numbers and strings, which all trackers take."""
    return {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str) else str(value)
        for section, values in printable(as_plain(config)).items()
        for key, value in values.items()
    }


def _with_prefix(say: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: say(f"warning: tracking.trackers: {name}: {text}")
