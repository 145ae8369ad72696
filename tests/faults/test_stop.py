"""Signals that ask a run to stop, at the worst moments; test_preemption.py has the whole group with its workers."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest

from pmf.checkpoint.integrity import find_damage
from pmf.checkpoint.places import list_checkpoints
from pmf.errors import PREEMPTED_STATUS
from pmf.training import preemption
from tests.faults.faults import SignalAt
from tests.faults.processes import finish, started, trace

EVALUATION = ("evaluation.every_images=96", "evaluation.num_images=40", "evaluation.reference=digits")
TERM = (signal.SIGTERM,)


@pytest.mark.parametrize(
    ("rank", "target", "number", "signals", "saved"),
    [
        (1, "pmf.training.step.TrainingStep._backward", 6, TERM, 6),  # in the sixth step, to one rank of two
        # In the save of step 8, and from a launcher once more: that one is finished, and the step after it.
        (0, "pmf.tensors.save_file", 2, TERM * 2, 9),
    ],
    ids=["mid-step", "mid-save"],
)
def test_asked_to_stop_in_the_middle(rank, target, number, signals, saved, whole, tmp_path):
    run, overrides = tmp_path / "run", ("training.checkpoint_every=8",)
    with started(run, *overrides, ranks=2, faults={rank: SignalAt(target, number, signals)}) as stopped:
        assert stopped.wait() == [PREEMPTED_STATUS] * 2, stopped.printed()
        assert stopped.printed().count("asked to stop: ") == 1
        assert "Traceback" not in stopped.printed()
    assert (run / "preempted").exists()
    assert f"**Stopped on request** at step {saved} of 12" in (run / "README.md").read_text()
    assert list_checkpoints(run)[-1].name == f"step_{saved:08d}"
    assert "this run had been asked to stop, and goes on" in finish(run, *overrides, ranks=2)
    assert trace(run) == trace(whole(2))


@pytest.mark.slow
def test_asked_to_stop_in_an_evaluation(whole, tmp_path):
    """Which belongs to step 6, saved a moment before: the checkpoint that is there is kept."""
    run, overrides = tmp_path / "run", ("training.checkpoint_every=6", *EVALUATION)
    fault = SignalAt("pmf.generation.images.ImageMaker.batches", 1, TERM)
    with started(run, *overrides, faults={0: fault}) as stopped:
        assert stopped.wait() == [PREEMPTED_STATUS], stopped.printed()
    assert [path.name for path in list_checkpoints(run)] == ["step_00000006"]
    finish(run, *overrides)
    assert (run / "evaluation" / "step_00000006.json").exists()
    ended = trace(run)
    ended["metrics"] = [line for line in ended["metrics"] if "fid" not in line]
    assert ended == trace(whole(1))


@dataclass(frozen=True)
class Later(SignalAt):
    """The second signal comes when it can be no echo of the first any more."""

    def __call__(self) -> None:
        preemption.ECHO = 0.0
        super().__call__()


@pytest.mark.parametrize(
    ("kind", "signals"),
    [(SignalAt, (signal.SIGTERM, signal.SIGUSR1)), pytest.param(Later, TERM * 2, marks=pytest.mark.slow)],
    ids=["by another signal", "by the same later"],
)
def test_asked_twice_it_ends_at_once(kind, signals, whole, tmp_path):
    run, overrides = tmp_path / "run", ("training.checkpoint_every=4",)
    fault = kind("pmf.tensors.save_file", 6, signals)
    with started(run, *overrides, faults={0: fault}) as stopped:
        assert stopped.wait() in ([128 + signal.SIGTERM], [128 + signal.SIGUSR1]), stopped.printed()
    assert [path.name for path in list_checkpoints(run)] == ["step_00000004"]
    assert find_damage(list_checkpoints(run)[0]) is None
    assert not (run / "preempted").exists()
    finish(run, *overrides)
    assert trace(run) == trace(whole(1))
