"""What a rank's process does; imported once by the server from which ranks are forked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import train as train_command
from pmf.distributed import run_command
from tests.faults.faults import STEP, wrap


def train(
    environment: Mapping[str, str], arguments: list[str], log: Path, samples: Path, fault: Callable[[], None] | None
) -> None:
    """Become the command ``train.py ARGUMENTS`` that prints to ``log``, and writes each step's samples to a file."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(environment)
    sys.argv = ["train.py", *arguments]
    torch.set_num_threads(1)
    _record_samples(samples)
    if fault is not None:
        fault()
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
