"""Runs of ``train.py`` as real processes, with faults in them.

Processes are forked from a server that has done the imports, so that a start costs a second. Each rank leads a process
group of its own, of which nothing is left when a test ends.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pmf.checkpoint import list_checkpoints, tensors_sha256
from tests.faults.rank import train
from tests.launch import ROOT, TINY
from tests.test_training import cut_back_to, metrics_of

CONTEXT = multiprocessing.get_context("forkserver")
# What the command imports late, or torch for it, would otherwise take each process a second and a half.
LATE = [
    "pmf.training",
    "pandas",
    "PIL.Image",
    "pyarrow.parquet",
    "torch._dynamo",
    "torch._decomp.decompositions_for_jvp",
]
CONTEXT.set_forkserver_preload(["tests.faults.rank", *LATE])
LIMIT = 240
"""Seconds that a run may take before its test fails; alone on a core it takes about two."""

Fault = Callable[[], None]
"""Called in a rank's process before the command; a picklable function or object."""


@dataclass
class Run:
    """Ranks that were started."""

    ranks: list[multiprocessing.process.BaseProcess]
    logs: list[Path]

    def wait(self) -> list[int | None]:
        """Exit statuses once all ranks have ended, negative for a signal."""
        deadline = time.monotonic() + LIMIT
        for rank in self.ranks:
            rank.join(max(deadline - time.monotonic(), 0))
            assert rank.exitcode is not None, f"still running after {LIMIT} s:\n{self.printed()}"
        return [rank.exitcode for rank in self.ranks]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll for something that the run does."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline and self.ranks[0].is_alive(), self.printed()
            time.sleep(0.01)

    def signal(self, number: int, rank: int = 0) -> None:
        """To one rank, and not to its loader workers."""
        os.kill(self.ranks[rank].pid or 0, number)

    def printed(self) -> str:
        """Output and errors of all ranks."""
        return "".join(log.read_text() for log in self.logs if log.exists())


@contextlib.contextmanager
def started(
    folder: Path, *overrides: str, ranks: int = 1, faults: Mapping[int, Fault] | None = None, resume: str = "auto"
) -> Iterator[Run]:
    """The tiny digits run in ``folder``, with a fault in some ranks. What it prints lies beside the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--config", str(ROOT / "configs" / "digits.yaml"), "--resume", resume, *TINY]
    arguments += [f"training.output_dir={folder}", *overrides]
    attempt = len(list(folder.parent.glob(f"{folder.name}.printed.*.0")))
    run = Run([], [folder.with_name(f"{folder.name}.printed.{attempt}.{rank}") for rank in range(ranks)])
    try:
        for rank, printed in enumerate(run.logs):
            samples = folder.with_name(f"{folder.name}.samples.{rank}")
            environment = _environment(rank, ranks, port)
            process = CONTEXT.Process(
                target=train, args=(environment, arguments, printed, samples, (faults or {}).get(rank))
            )
            process.start()
            run.ranks.append(process)
        yield run
    finally:
        for process in run.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()


def finish(folder: Path, *overrides: str, ranks: int = 1, resume: str = "auto") -> str:
    """Run to the end; returns what was printed."""
    with started(folder, *overrides, ranks=ranks, resume=resume) as run:
        assert run.wait() == [0] * ranks, run.printed()
        return run.printed()


def trace(folder: Path) -> dict[str, Any]:
    """All that a run leaves: hashes of weights, optimizer and averages, progress, every step's samples and metrics."""
    checkpoint = list_checkpoints(folder)[-1]
    assert (folder / "latest").read_text() == f"checkpoints/{checkpoint.name}\n"
    state = json.loads((checkpoint / "state.json").read_text())
    return {
        **{file.stem: tensors_sha256(load_file(file)) for file in sorted(checkpoint.glob("*.safetensors"))},
        "progress": state["progress"],
        "metrics": metrics_of(folder),
        "samples": samples_of(folder),
    }


def samples_of(folder: Path) -> dict[int, list[int]]:
    """Samples of each step over all ranks; a step done again after a resume must have had the same."""
    of_step: dict[int, set[int]] = {}
    for path in folder.parent.glob(f"{folder.name}.samples.*"):
        mine: dict[int, list[int]] = {}
        for line in path.read_text().splitlines():
            step, _, listed = line.partition(" ")
            indices = json.loads(listed)
            assert mine.setdefault(int(step), indices) == indices
        for step, indices in mine.items():
            of_step.setdefault(step, set()).update(indices)
    return {step: sorted(indices) for step, indices in sorted(of_step.items())}


def cut_back(run: Path, copy: Path, step: int) -> Path:
    """A copy of a run as it was when it was killed some time after ``step``."""
    cut_back_to(run, copy, step)
    for samples in run.parent.glob(f"{run.name}.samples.*"):
        lines = samples.read_text().splitlines(keepends=True)
        kept = [line for line in lines if int(line.partition(" ")[0]) < step]
        copy.with_name(samples.name.replace(run.name, copy.name, 1)).write_text("".join(kept))
    return copy


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    if ranks == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
