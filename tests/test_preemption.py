"""Runs that are asked to stop: nothing is lost, and what follows is what would have followed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmf.errors import PREEMPTED_STATUS
from tests.launch import ROOT, TINY, run_command, train_tiny
from tests.test_training import assert_same_run

# Long enough to be caught in the middle, short enough to finish.
STEPS = ["training.max_steps=24", "training.checkpoint_every=24", "data.num_workers=2"]


@contextlib.contextmanager
def started(output: Path, ranks: int, *overrides: str) -> Iterator[subprocess.Popen]:
    """A run in a process group of its own, of which nothing is left in the end."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    command = [
        *launcher,
        str(ROOT / "train.py"),
        "--config",
        str(ROOT / "configs" / "digits.yaml"),
        *TINY,
        *STEPS,
        *overrides,
    ]
    process = subprocess.Popen(
        [*command, f"training.output_dir={output}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_a_metrics_line(output: Path) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        path = output / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= 2:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not start")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_saves_the_step_and_the_next_start_goes_on(tmp_path, ranks):
    whole = tmp_path / "whole"
    train_tiny(whole, *STEPS, ranks=ranks)

    stopped = tmp_path / "stopped"
    with started(stopped, ranks) as process:
        wait_for_a_metrics_line(stopped)
        os.killpg(process.pid, signal.SIGTERM)  # everything at once, loader workers too, as a scheduler does it
        printed, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    if ranks == 1:
        assert process.returncode == PREEMPTED_STATUS, printed
    (checkpoint,) = (stopped / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step_"))
    assert 4 <= step < 24
    assert f"asked to stop: step {step} of 24 is saved" in printed
    assert "Traceback" not in printed.partition("asked to stop")[0]
    assert (stopped / "preempted").exists()

    printed = train_tiny(stopped, *STEPS, ranks=ranks)
    assert f"(step {step} of 24)" in printed
    assert "this run had been asked to stop" in printed
    assert not (stopped / "preempted").exists()
    assert_same_run(whole, stopped, 24)


def test_a_second_signal_ends_at_once_and_a_locked_folder_is_refused(tmp_path):
    with started(tmp_path, 1, "training.max_steps=100000", "training.checkpoint_every=100000") as process:
        wait_for_a_metrics_line(tmp_path)
        second = run_command("train.py", "--config", "configs/digits.yaml", *TINY, f"training.output_dir={tmp_path}")
        assert second.returncode == 2
        assert f"in use by process {process.pid} on " in second.stderr
        assert second.stderr.count("\n") == 1

        process.send_signal(signal.SIGSTOP)  # so that no step ends between the two
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
    assert not list((tmp_path / "checkpoints").glob("step_*"))
    # The kernel gave the lock back.
    printed = train_tiny(tmp_path)
    assert "holds no checkpoint: starting from scratch" in printed
