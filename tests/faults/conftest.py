"""Uninterrupted runs, one for each number of ranks, that the faults are measured against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import finish

EVERY_FOUR = "training.checkpoint_every=4"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of the uninterrupted run of twelve steps on so many ranks, with checkpoints of steps 4, 8, 12."""
    folder = tmp_path_factory.mktemp("whole")
    runs: dict[tuple[int, tuple[str, ...]], Path] = {}

    def run(ranks: int, *overrides: str) -> Path:
        key = (ranks, overrides)
        if key not in runs:
            runs[key] = folder / f"run{len(runs)}"
            finish(runs[key], EVERY_FOUR, "training.keep_checkpoints=9", *overrides, ranks=ranks)
        return runs[key]

    return run
