"""A batch of NaN on one rank is skipped on all of them; too many in a row end the run."""

from __future__ import annotations

import json

import pytest

from pmf.training.step import MAX_SKIPPED_IN_A_ROW
from tests.faults.faults import InfiniteAverage, NaNImages
from tests.faults.processes import EVERY_FOUR, finish, samples_of, started, trace
from tests.runs import metrics_of, tensors_of


def test_a_step_that_one_rank_spoils_changes_nothing_on_any(tmp_path):
    """Of six steps the sixth is skipped: weights, moments and averages are those of five, whichever rank spoils it."""
    five = tmp_path / "five"
    finish(five, "training.max_steps=5", ranks=2)
    run = tmp_path / "run"
    with started(run, "training.max_steps=6", ranks=2, faults={1: NaNImages(6, 6)}) as spoiled:
        assert spoiled.wait() == [0, 0], spoiled.printed()
    before, after = (tensors_of(folder / "checkpoints" / f"step_{step:08d}") for folder, step in ((five, 5), (run, 6)))
    assert before.keys() == after.keys()
    assert [name for name in before if not before[name].equal(after[name])] == []
    assert metrics_of(run)[-1]["skipped"] == 1

    # Both ranks go on from there with the same weights: the run can be resumed on one process.
    finish(run, ranks=1)
    assert metrics_of(run)[-1]["skipped"] == 1


def test_too_many_in_a_row_end_the_run_naming_the_samples(tmp_path):
    run = tmp_path / "run"
    last = MAX_SKIPPED_IN_A_ROW + 1
    with started(run, "training.max_steps=40", ranks=2, faults={1: NaNImages(2, 40)}) as spoiled:
        assert spoiled.wait() == [2, 2], spoiled.printed()
        printed = spoiled.printed()
    steps = (tmp_path / "run.samples.1").read_text().splitlines()
    assert len(steps) == last
    lines = [json.loads(line.partition(" ")[2]) for line in steps]
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: step {last}: the gradient was not finite {MAX_SKIPPED_IN_A_ROW} times in a row ")
    _, _, named = line.partition("whose loss is not finite: ")
    assert sorted(map(int, named.partition(")")[0].split(", "))) == lines[-1]
    assert "Traceback" not in printed


@pytest.mark.slow
def test_snapshots_that_one_rank_spoils_are_left_out_on_both(tmp_path):
    """Its part of the average is infinite after odd steps: no FID and no grid then, and the same training."""
    evaluation = ("evaluation.every_images=16", "evaluation.num_images=20", "evaluation.reference=digits")
    given = ("training.max_steps=4", "training.sample_every=1", "sampling.ema=10", *evaluation)
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(whole, *given, ranks=2)
    with started(run, *given, ranks=2, faults={1: InfiniteAverage("10")}) as spoiled:
        assert spoiled.wait() == [0, 0], spoiled.printed()
        printed = spoiled.printed()
    assert "Traceback" not in printed
    for step in (1, 3):
        assert printed.count(f"warning: step {step} is not evaluated: step {step}, 10: ") == 1
        assert printed.count(f"warning: samples/step_{step:08d}.png is left out: step {step}, 10: ") == 1
    assert metrics_of(run) == [line for line in metrics_of(whole) if "fid" not in line or line["step"] % 2 == 0]
    before, after = (tensors_of(folder / "checkpoints" / "step_00000004") for folder in (whole, run))
    assert [name for name in before if not before[name].equal(after[name])] == []


def test_other_numbers_of_processes_go_on_with_the_same_samples(whole, tmp_path):
    """Six steps on one process and six on two, or the other way round."""
    expected = trace(whole(1))
    for first, second in ((1, 2), (2, 1)):
        run = tmp_path / f"run{first}"
        finish(run, EVERY_FOUR, "training.max_steps=6", ranks=first)
        assert "(step 6 of 12)" in finish(run, EVERY_FOUR, ranks=second)
        assert samples_of(run) == expected["samples"]
        for ours, theirs in zip(metrics_of(run), expected["metrics"], strict=True):
            # Gradients are added in another order, and Newton-Schulz enlarges rounding.
            assert abs(ours["loss_u"] - theirs["loss_u"]) < 1e-4 * theirs["loss_u"]
