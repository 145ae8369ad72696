"""What a rank's process does before and while it is ``train.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train as train_command
from pmf.commands import run_command
from tests.faults.faults import STEP, wrap

Fault = Callable[[], None]
"""Called in a rank's process before the command; a picklable function or object."""


@dataclass(frozen=True)
class FaultyTraining:
    """The command ``train.py ARGUMENTS`` with a fault in some ranks; each step's samples go to a file of the rank."""

    arguments: tuple[str, ...]
    samples: Path
    faults: Mapping[int, Fault]

    def __call__(self, rank: int) -> None:
        sys.argv = ["train.py", *self.arguments]
        _record_samples(self.samples.with_name(f"{self.samples.name}.{rank}"))
        if rank in self.faults:
            self.faults[rank]()
        run_command(train_command.main)


def _record_samples(path: Path) -> None:
    def wrapper(step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any, batches: Any) -> Any:
            with path.open("a") as file:
                file.write(
                    f"{batches[0].step} {sorted(index for batch in batches for index in batch.indices.tolist())}\n"
                )
            return step(self, batches)

        return wrapped

    wrap(STEP, wrapper)
