"""Uninterrupted runs, one for each number of ranks, that the faults are measured against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import EVERY_FOUR, finish


@pytest.fixture(scope="session")
def whole(once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[..., Path]:
    """The folder of the uninterrupted run of twelve steps on so many ranks, with checkpoints of steps 4, 8, 12."""

    def run(ranks: int, *overrides: str) -> Path:
        settings = (EVERY_FOUR, "training.keep_checkpoints=9", *overrides)
        return once(" ".join(("whole", str(ranks), *overrides)), lambda folder: finish(folder, *settings, ranks=ranks))

    return run
