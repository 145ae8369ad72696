"""What to do about a step that does not end: say who hangs and where, and end.

Each process has a thread that counts the seconds of the current step. When they are too many, it writes the stacks of
its process to stderr, tells the others where it stands, and ends the process. A process that reports nothing is the one
that failed. Nothing is counted outside of steps: sampling, evaluation and saving may take as long as they need.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from pmf.distributed.world import World, meeting_point

HUNG_STATUS = 70
"""EX_SOFTWARE of sysexits.h."""
TICK = 0.25
GRACE = timedelta(seconds=5)
"""How long to wait for the others to tell where they stand."""


class Watchdog:
    """One per process; its thread ends with it."""

    def __init__(self, world: World, seconds: float) -> None:
        self._world = world
        self._seconds = seconds
        self._ticks = 0
        self._deadline = math.inf
        self._step = 0
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """The body must end in time, or this process does with status ``HUNG_STATUS``."""
        self._step = step
        self._deadline = self._ticks + self._seconds / TICK
        try:
            yield
        finally:
            self._deadline = math.inf

    def _watch(self) -> None:
        # Ticks and no clock: a process that was stopped by Ctrl-Z for an hour has not hung for an hour.
        while self._ticks < self._deadline:
            time.sleep(TICK)
            self._ticks += 1
        self._give_up()

    def _give_up(self) -> None:
        place = _place_of_main_thread()
        print(f"rank {self._world.rank}: the stacks of all threads", file=sys.stderr, flush=True)
        faulthandler.dump_traceback()
        places = {self._world.rank: place} if self._world.size == 1 else self._exchange(place)
        silent = [rank for rank in range(self._world.size) if rank not in places]
        parts = [f"rank {rank} does not answer" for rank in silent]
        parts += [f"rank {rank} waits in {where}" for rank, where in places.items()]
        print(
            f"error: step {self._step} did not end within {self._seconds:g} s (training.step_timeout); "
            + "; ".join(parts),
            file=sys.stderr,
            flush=True,
        )
        os._exit(HUNG_STATUS)

    def _exchange(self, place: str) -> dict[int, str]:
        """Report where this rank stands, and collect where the others stand that report in time."""
        places = {self._world.rank: place}
        try:
            store = meeting_point(GRACE)
            store.set(self._key(self._world.rank), place)
            time.sleep(GRACE.total_seconds())
            for rank in range(self._world.size):
                if store.check([self._key(rank)]):
                    places[rank] = store.get(self._key(rank)).decode()
        except (RuntimeError, KeyError):
            print("the store of the processes does not answer: it is with rank 0 or its launcher", file=sys.stderr)
        return dict(sorted(places.items()))

    def _key(self, rank: int) -> str:
        return f"hung in step {self._step}: {rank}"


def _place_of_main_thread() -> str:
    """File, line and function of the innermost frame of this library; of any frame if there is none."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    stack = traceback.extract_stack(frame)
    here = str(Path(__file__).parents[1])
    entry = next((entry for entry in reversed(stack) if entry.filename.startswith(here)), stack[-1])
    return f"{Path(entry.filename).name}:{entry.lineno} ({entry.name})"
