"""Starting candidates on every rank together, and ending them together: one that fails keeps no other waiting."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmf.auto_batch.candidate import Result
from pmf.distributed.world import World
from pmf.errors import UserError

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
"""From the first failure until the others are ended: the rank that ran out of memory may be the second to be seen."""
LIMIT_SECONDS = 3600.0


@dataclass(frozen=True)
class _Failed:
    """A rank that ended without a result, and its last words."""

    reason: str


def run_on_every_rank(
    world: World, command: Sequence[str], folder: Path, *, arguments: Sequence[str] = ()
) -> list[Result]:
    """Run ``command CONFIG RESULT STEPS`` as one process on each rank; called by all ranks.

    Args:
        world: of the callers; it must hold no accelerator, whose memory the candidates need.
        folder: for files of this rank.
        arguments: config and number of steps.

    Returns:
        What each rank found, the same list everywhere. If any was out of memory the list is that one result.

    Raises:
        UserError: a candidate ended otherwise, or took longer than LIMIT_SECONDS.
    """
    config, steps = arguments
    result_path, log_path = folder / "result.json", folder / "log.txt"
    result_path.unlink(missing_ok=True)
    port = world.gather(_free_port() if world.is_main else None)[0]
    with _started([*command, config, str(result_path), steps], log_path, port) as process:
        first_failure: float | None = None
        started = time.monotonic()
        while True:
            states: list[Result | _Failed | None] = world.gather(_state(process, result_path, log_path))
            now = world.gather(time.monotonic() - started)[0]
            starved = [state for state in states if isinstance(state, Result) and state.out_of_memory]
            if starved:
                return starved[:1]
            failures = [state for state in states if isinstance(state, _Failed)]
            first_failure = first_failure if first_failure is not None or not failures else now
            if first_failure is not None and now > first_failure + GRACE_SECONDS:
                raise UserError(f"a trial run failed: {failures[0].reason}")
            finished = [state for state in states if isinstance(state, Result)]
            if len(finished) == world.size:
                return finished
            if now > LIMIT_SECONDS:
                raise UserError(f"a trial run did not end within {LIMIT_SECONDS / 60:.0f} minutes")
            time.sleep(POLL_SECONDS)


def _state(process: subprocess.Popen[bytes], result_path: Path, log_path: Path) -> Result | _Failed | None:
    """What is known of this rank's candidate; None while it runs."""
    status = process.poll()
    if result_path.exists():
        return Result(**json.loads(result_path.read_text()))
    if status is None:
        return None
    if status == -signal.SIGKILL:  # nobody here does that: the system has run out of memory
        return Result(out_of_memory=True)
    lines = log_path.read_text(errors="replace").strip().splitlines()
    return _Failed(lines[-1] if lines else f"exit status {status}")


@contextlib.contextmanager
def _started(command: Sequence[str], log_path: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, of which nothing is left in the end."""
    environment: dict[str, Any] = {
        name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")
    }
    environment["MASTER_PORT"] = str(port)  # a group of their own; ours goes on meanwhile
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
