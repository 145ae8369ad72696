"""Stages that end in their own ways, for the tests of what runs them."""

from __future__ import annotations

import os
import subprocess
import time

from benchmarks.contact.setting import Report, Setting


def measures(setting: Setting, report: Report) -> None:
    report(first=1)
    report(second=[2.0, 3.0])


def starts_a_process_and_never_ends(setting: Setting, report: Report) -> None:
    child = subprocess.Popen(["sleep", "600"])
    report(first=1, processes=[os.getpid(), child.pid])
    while True:
        time.sleep(0.1)


def fails_half_way(setting: Setting, report: Report) -> None:
    report(first=1)
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nlong advice")


def ends_without_a_word(setting: Setting, report: Report) -> None:
    report(first=1)
    os._exit(7)


def prints(setting: Setting, report: Report) -> None:
    print("what a compiler had to say")
    raise MemoryError
