"""Ending early on a signal, without losing a step.

SIGTERM and SIGUSR1 are what schedulers send before they take a machine away; Ctrl-C counts as well. The first signal
sets a flag. At the end of the step all ranks agree whether any of them has it, save once, and leave with an exit status
of their own. A second signal to the same process ends it at once, but not an echo of the first: ``uv run`` passes on
what a scheduler, or a shell without a terminal, has sent to the whole process group already.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from pmf.distributed.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ECHO = 5.0
"""Seconds in which the same signal again is an echo: it comes within milliseconds, but Python may first see it when a
long call into torch returns."""


class StopRequest:
    """Whether a signal has asked this run to stop; a context manager that listens while it is open."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._received: tuple[int, float] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def flag(self) -> Tensor:
        """1 if any rank has received a signal, else 0: float32 of shape () on the device, reduced in the background.

        Called by all ranks. Nothing waits until the value is read.
        """
        flag = torch.full((), float(self._received is not None), device=self._world.device)  # a copy would wait
        return self._world.maximum(flag)

    def agreed(self) -> bool:
        """The flag's value; called by all ranks."""
        return bool(self.flag())

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number, time.monotonic()
            return
        first, at = self._received
        if number != first or time.monotonic() - at > ECHO:
            os._exit(128 + number)
