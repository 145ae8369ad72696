"""A stage from inside its process: it reports through a pipe, and prints into a log file."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.contact.setting import Report, Setting
from benchmarks.result_file import one_line

TELL_WHERE = signal.SIGUSR2
"""Has the process print where each of its threads is, even if it hangs in a library."""


def _raise() -> None:
    raise RuntimeError("injected failure")


def _hang() -> None:
    while True:
        time.sleep(1)


# What --fault can have a stage do instead of its work; each is a way in which stages end on real machines.
FAULTS: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "exit": lambda: sys.exit("injected exit"),
    "hang": _hang,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),  # as when memory runs out
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}


def main(
    run: Callable[[Setting, Report], None], setting: Setting, fault: str | None, log: Path, pipe: Connection
) -> None:
    """Run a stage; the last message says how it ended, and is missing if the process was ended."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # to dump what a GPU's process has mapped takes minutes
    os.setsid()  # a group of its own, which the processes that it starts are in too
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    faulthandler.enable(all_threads=True)
    faulthandler.register(TELL_WHERE, all_threads=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(**values: object) -> None:
        pipe.send_bytes(json.dumps({"results": values}).encode())

    try:
        if fault is not None:
            FAULTS[fault]()
        run(setting, report)
        end = {"status": "ok"}
    except BaseException as error:
        traceback.print_exc()
        end = {"status": "failed", "error": one_line(error), "traceback": traceback.format_exc()}
    sys.stdout.flush()
    sys.stderr.flush()
    pipe.send_bytes(json.dumps(end).encode())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
