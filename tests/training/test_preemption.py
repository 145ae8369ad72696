"""Runs that are asked to stop: nothing is lost, and what follows is what would have followed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from pmf.errors import PREEMPTED_STATUS
from tests.launch import ROOT, TINY, Script, launched, run_command, started, torchrun, train_tiny
from tests.runs import assert_same_run

DIGITS = ("--config", str(ROOT / "configs" / "digits.yaml"), *TINY)
# Long enough to be caught in the middle, short enough to finish.
STEPS = ("training.max_steps=24", "training.checkpoint_every=24")


def has_begun(output: Path) -> bool:
    path = output / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= 2


def assert_saved_and_continued(stopped: Path, printed: str, ranks: int, whole: Path) -> None:
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


def test_a_signal_saves_the_step_and_the_next_start_goes_on(tmp_path):
    train_tiny(tmp_path / "whole", *STEPS)
    stopped = tmp_path / "stopped"
    command = Script("train.py", (*DIGITS, *STEPS, "data.num_workers=2", f"training.output_dir={stopped}"))
    with started(command, tmp_path / "printed") as run:
        run.wait_until(lambda: has_begun(stopped))
        os.killpg(run.pid(), signal.SIGTERM)  # everything at once, loader workers too, as a scheduler does it
        assert run.wait() == [PREEMPTED_STATUS], run.printed()
    assert_saved_and_continued(stopped, run.printed(), 1, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [((sys.executable, *torchrun(2)), 2), (("uv", "run", "--no-sync"), 1)],
    ids=["torchrun", "uv"],
)
def test_a_signal_to_a_launcher_and_all_its_processes(launcher, ranks, tmp_path):
    """The processes of torchrun are groups of their own; that of uv has it from the scheduler and from uv."""
    program = shutil.which(launcher[0])
    if program is None:
        pytest.skip(f"needs {launcher[0]} on PATH")
    train_tiny(tmp_path / "whole", *STEPS, ranks=ranks)
    stopped = tmp_path / "stopped"
    options = (*DIGITS, *STEPS, "data.num_workers=2", f"training.output_dir={stopped}")
    with launched(*launcher[1:], "tests/faults/short_train.py", *options, program=program) as process:
        while not has_begun(stopped):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        printed = "".join(process.communicate(timeout=100))
        assert process.returncode not in (0, None)
    assert_saved_and_continued(stopped, printed, ranks, tmp_path / "whole")


def test_a_second_signal_ends_at_once_and_a_locked_folder_is_refused(tmp_path):
    output = tmp_path / "run"
    overrides = ("training.max_steps=100000", "training.checkpoint_every=100000", f"training.output_dir={output}")
    with started(Script("train.py", (*DIGITS, *overrides)), tmp_path / "printed") as run:
        run.wait_until(lambda: has_begun(output))
        second = run_command("train.py", *DIGITS, f"training.output_dir={output}")
        assert second.returncode == 2
        assert f"in use by process {run.pid()} on " in second.stderr
        assert second.stderr.count("\n") == 1

        run.signal(signal.SIGSTOP)  # so that no step ends between the two
        run.signal(signal.SIGUSR1)
        run.signal(signal.SIGTERM)
        run.signal(signal.SIGCONT)
        assert run.wait()[0] in (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
    assert not list((output / "checkpoints").glob("step_*"))
    # The kernel gave the lock back.
    assert "holds no checkpoint: starting from scratch" in train_tiny(output)
