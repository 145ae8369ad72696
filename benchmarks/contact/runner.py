"""Stages one after the other, each in a process with a time limit: whatever one does, the next one runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from benchmarks.contact import child
from benchmarks.contact.setting import Setting
from benchmarks.contact.stages import Stage
from benchmarks.result_file import ResultFile

ROOT = Path(__file__).parents[2]
NOT_STARTED, SKIPPED, NEEDS_CUDA = "not started", "skipped: no time left", "needs CUDA"
GOOD = ("ok", NEEDS_CUDA)
GRACE_S = 0.5
"""For a process that is about to be ended, to write where it hangs."""
LEAVE_S = 15
"""For a process that is done, to end by itself."""
LOG_LINES = 40


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs stages until a point in time.

    Attributes:
        context: how processes start.
        logs: folder for what each stage prints.
        faults: stages that are to fail, and how (see FAULTS).
        deadline: of ``time.monotonic``.
    """

    context: BaseContext
    logs: Path
    faults: Mapping[str, str]
    deadline: float

    def run_all(self, stages: Sequence[Stage], setting: Setting, file: ResultFile) -> bool:
        """Run the stages, the file rewritten after each measurement.

        Returns:
            Whether each stage did all that it can do on this device.
        """
        entries: dict[str, dict[str, Any]] = {stage.name: {"status": NOT_STARTED} for stage in stages}
        file.add(stages=entries)
        for stage in stages:
            entry = entries[stage.name]
            left = self.deadline - time.monotonic()
            if stage.needs_cuda and not setting.on_gpu and stage.name not in self.faults:
                entry["status"] = NEEDS_CUDA
            elif left < stage.worthwhile:
                entry["status"] = SKIPPED
            else:
                entry["status"] = "running"
                file.write()
                self.run(stage, setting, entry, file)
            file.write()
            print(f"{stage.name:25s} {entry['status']} {entry.get('error', '')}", flush=True)
        return all(entry["status"] in GOOD for entry in entries.values())

    def run(self, stage: Stage, setting: Setting, entry: dict[str, Any], file: ResultFile) -> None:
        """Fill the entry of one stage."""
        limit = min(stage.limit, self.deadline - time.monotonic())
        log = self.logs / f"{stage.name}.log"
        ours, theirs = self.context.Pipe(duplex=False)
        arguments = (stage.run, setting, self.faults.get(stage.name), log, theirs)
        process = self.context.Process(target=child.main, args=arguments)  # type: ignore[attr-defined]
        started = time.monotonic()
        process.start()
        theirs.close()
        try:
            in_time = _listen(ours, started + limit, entry, file)
            if in_time:
                process.join(LEAVE_S)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, child.TELL_WHERE)
                time.sleep(GRACE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # if it had not yet made its group
            process.join()
        entry["seconds"] = round(time.monotonic() - started, 2)
        if not in_time:
            entry |= {"status": "out of time", "error": f"ended after {limit:.0f} s; what it had measured is kept"}
        elif entry["status"] == "running":
            entry |= {"status": "failed", "error": f"its process ended with exit status {process.exitcode}"}
        if entry["status"] != "ok" and log.exists():
            entry["log"] = without_places(log.read_text(errors="replace")).splitlines()[-LOG_LINES:]


def without_places(text: str) -> str:
    """Files of this repository and of packages without the folders that they are in on this machine."""
    return re.sub(r'[^\s"]*/(site|dist)-packages/', "", text.replace(f"{ROOT}/", ""))


def _listen(pipe: Connection, until: float, entry: dict[str, Any], file: ResultFile) -> bool:
    """Take in what a stage reports, until its process ends; False if that takes too long."""
    results = entry.setdefault("results", {})
    while True:
        if not pipe.poll(max(0.0, until - time.monotonic())):
            return False
        try:
            message = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):  # the process is gone, perhaps in the middle of a message
            return True
        if "results" not in message:
            entry |= message
            return True
        results |= message["results"]
        file.write()
