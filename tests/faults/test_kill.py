"""kill -9 at any moment: the next start goes on, and ends where an uninterrupted run ends, to the bit."""

from __future__ import annotations

import random
import signal
import time

import pytest

from pmf.checkpoint import find_damage, list_checkpoints
from tests.faults.conftest import EVERY_FOUR
from tests.faults.faults import STEP, KillInSave, SignalAt
from tests.faults.processes import cut_back, finish, started, trace
from tests.launch import ROOT, TINY, run_command

# One checkpoint is kept: after the new one is there, and not before, the old one goes.
PRUNING = (EVERY_FOUR, "training.keep_checkpoints=1")


def test_a_save_killed_before_each_of_its_writes(whole, tmp_path):
    """Every mkdir, file, flush, rename, pointer and pruned file of the save of step 8, in a run that has step 4."""
    record = tmp_path / "points"
    run = cut_back(whole(1), tmp_path / "recorded", 4)
    with started(run, *PRUNING, "training.max_steps=8", faults={0: KillInSave(record=record)}) as recorded:
        assert recorded.wait() == [0], recorded.printed()
    points = record.read_text().split()
    # All kinds are there: a save has 4 + 2 files, two renames (the pointer is the second) and an old folder to remove.
    assert points.count("os.fsync") >= 10
    assert {"os.mkdir", "pmf.checkpoint.save_file", "os.rename", "os.replace", "os.unlink", "os.rmdir"} <= set(points)

    expected, left = trace(whole(1)), set()
    for point, name in enumerate(points, start=1):
        run = cut_back(whole(1), tmp_path / f"point{point}", 4)
        with started(run, *PRUNING, faults={0: KillInSave(point=point)}) as killed:
            assert killed.wait() == [-signal.SIGKILL], f"{point} {name}: {killed.printed()}"
        steps = [int(path.name[-8:]) for path in list_checkpoints(run) if find_damage(path) is None]
        assert steps in ([4], [4, 8], [8]), f"{point} {name}"
        left.add(tuple(steps))
        assert f"(step {steps[-1]} of 12)" in finish(run, *PRUNING), f"{point} {name}"
        assert trace(run) == expected, f"{point} {name}"
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000012"]
    assert {(4,), (4, 8)} <= left


@pytest.mark.parametrize("target", ["pmf.checkpoint.save_file", "os.fsync", "os.rename", "os.replace"])
def test_rank_0_of_two_killed_in_a_save(target, whole, tmp_path):
    run = cut_back(whole(2), tmp_path / "run", 4)
    with started(run, EVERY_FOUR, ranks=2, faults={0: SignalAt(target, 2)}) as killed:
        statuses = killed.wait()
    assert statuses[0] == -signal.SIGKILL
    assert statuses[1] not in (0, None)  # it does not wait for ever for the other
    finish(run, EVERY_FOUR, ranks=2)
    assert trace(run) == trace(whole(2))


def test_rank_1_killed_in_a_step(whole, tmp_path):
    run = tmp_path / "run"
    with started(run, EVERY_FOUR, ranks=2, faults={1: SignalAt("pmf.step.OptimizerStep._backward", 7)}) as killed:
        statuses = killed.wait()
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] not in (0, None)
    assert "(step 4 of 12)" in finish(run, EVERY_FOUR, ranks=2)
    assert trace(run) == trace(whole(2))


@pytest.mark.slow
def test_torchrun_starts_again_after_a_crash(whole, tmp_path):
    run = tmp_path / "run"
    result = run_command(
        str(ROOT / "tests" / "faults" / "crash_once.py"),
        "--config",
        str(ROOT / "configs" / "digits.yaml"),
        *TINY,
        EVERY_FOUR,
        f"training.output_dir={run}",
        ranks=2,
        restarts=1,
    )
    assert result.returncode == 0, result.stderr
    assert "(step 4 of 12)" in result.stdout + result.stderr
    expected = trace(whole(2))
    assert {**trace(run), "samples": expected["samples"]} == expected


# Twelve steps are five, a kill, a resume and seven. With two ranks Muon's state is divided over them.
@pytest.mark.parametrize(
    ("ranks", "workers", "precision"),
    [
        (1, 0, "no"),
        (2, 2, "bf16"),
        pytest.param(1, 2, "no", marks=pytest.mark.slow),
        pytest.param(1, 0, "bf16", marks=pytest.mark.slow),
        pytest.param(1, 2, "bf16", marks=pytest.mark.slow),
        pytest.param(2, 0, "no", marks=pytest.mark.slow),
        pytest.param(2, 2, "no", marks=pytest.mark.slow),
        pytest.param(2, 0, "bf16", marks=pytest.mark.slow),
    ],
)
def test_five_steps_a_kill_and_seven(ranks, workers, precision, whole, tmp_path):
    run = tmp_path / "run"
    overrides = ("training.checkpoint_every=5", f"training.mixed_precision={precision}", f"data.num_workers={workers}")
    faults = {rank: SignalAt(STEP, 7) for rank in range(ranks)}
    with started(run, *overrides, ranks=ranks, faults=faults) as killed:
        assert killed.wait() == [-signal.SIGKILL] * ranks, killed.printed()
    assert "(step 5 of 12)" in finish(run, *overrides, ranks=ranks)
    assert trace(run) == trace(whole(ranks, f"training.mixed_precision={precision}"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_ten_kills_at_random_times(ranks, whole, tmp_path):
    """Of one run, which gets further between them; of rank 0 or rank 1."""
    random_numbers = random.Random(ranks)
    run, overrides = tmp_path / "run", ("training.checkpoint_every=1", "training.keep_checkpoints=2")
    for _ in range(10):
        with started(run, *overrides, ranks=ranks) as killed:
            time.sleep(random_numbers.uniform(0, 4))  # about the time of a whole run
            killed.signal(signal.SIGKILL, random_numbers.randrange(ranks))
            killed.wait()
        assert all(find_damage(path) is None for path in list_checkpoints(run))
    finish(run, *overrides, ranks=ranks)
    assert trace(run) == trace(whole(ranks))
