"""Runs of ``train.py`` as real processes, with faults in them, and what they leave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pmf.checkpoint.places import list_checkpoints
from pmf.tensors import tensors_sha256
from tests import launch
from tests.faults.rank import Fault, FaultyTraining
from tests.launch import ROOT, TINY, Ranks
from tests.runs import cut_back_to, metrics_of

EVERY_FOUR = "training.checkpoint_every=4"


@contextlib.contextmanager
def started(
    folder: Path, *overrides: str, ranks: int = 1, faults: Mapping[int, Fault] | None = None, resume: str = "auto"
) -> Iterator[Ranks]:
    """The tiny digits run in ``folder``, with a fault in some ranks. What it prints lies beside the folder."""
    arguments = ("--config", str(ROOT / "configs" / "digits.yaml"), "--resume", resume, *TINY)
    samples = folder.with_name(f"{folder.name}.samples")
    training = FaultyTraining((*arguments, f"training.output_dir={folder}", *overrides), samples, faults or {})
    attempt = len(list(folder.parent.glob(f"{folder.name}.printed.*")))
    with launch.started(training, folder.with_name(f"{folder.name}.printed.{attempt}"), ranks=ranks) as run:
        yield run


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
