"""Uninterrupted runs, one for each number of ranks, that the faults are measured against."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import EVERY_FOUR, finish


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of the uninterrupted run of twelve steps on so many ranks, with checkpoints of steps 4, 8, 12.

    The processes that pytest-xdist divides the tests over share these runs.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def run(ranks: int, *overrides: str) -> Path:
        folder = shared / " ".join(("whole", str(ranks), *overrides))
        with folder.with_name(f"{folder.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if lock.tell() == 0:
                finish(folder, EVERY_FOUR, "training.keep_checkpoints=9", *overrides, ranks=ranks)
                lock.write("finished")
        return folder

    return run
