"""kill -9 at any moment: the next start goes on, and ends where an uninterrupted run ends, to the bit."""

from __future__ import annotations

import contextlib
import random
import signal
import time

import pytest

from pmf.checkpoint.integrity import find_damage
from pmf.checkpoint.places import list_checkpoints
from tests.faults.faults import STEP, WRITES, KillInSave, SignalAt
from tests.faults.processes import EVERY_FOUR, cut_back, finish, started, trace
from tests.launch import ROOT, TINY, launch, torchrun

# Many CPUs compute slowly in bfloat16.
SMALLER = ("training.global_batch_size=4", "training.micro_batch_size=2")


@pytest.mark.parametrize("chosen", ["first and last of each kind", pytest.param("all", marks=pytest.mark.slow)])
def test_a_save_killed_before_its_writes(chosen, whole, tmp_path):
    """Each mkdir, file, flush, rename, pointer and pruned file: one run, killed at every start."""
    overrides = ("training.max_steps=20", "training.checkpoint_every=1", "training.keep_checkpoints=1")
    original, record = whole(1, "training.max_steps=20"), tmp_path / "points"
    recorded = cut_back(original, tmp_path / "recorded", 4)
    with started(recorded, *overrides, "training.max_steps=5", faults={0: KillInSave(record=record)}) as run:
        assert run.wait() == [0], run.printed()
    points = record.read_text().split()
    # Six files, their folder and the one above, the pointer and the run folder are flushed.
    assert points.count("os.fsync") == 10
    assert set(points) == set(WRITES)

    last = {name: point for point, name in enumerate(points, start=1)}
    first = {name: points.index(name) + 1 for name in points}
    killed, newest = cut_back(original, tmp_path / "killed", 4), 4
    everything = range(1, len(points) + 1)
    for point in everything if chosen == "all" else sorted({*first.values(), *last.values()}):
        name = points[point - 1]
        with started(killed, *overrides, faults={0: KillInSave(point=point)}) as run:
            assert run.wait() == [-signal.SIGKILL], f"{point} {name}: {run.printed()}"
            assert f"(step {newest} of 20)" in run.printed()
        steps = [int(path.name[-8:]) for path in list_checkpoints(killed)]
        assert all(find_damage(path) is None for path in list_checkpoints(killed)), f"{point} {name}"
        assert steps[-1] - newest == (point > points.index("os.rename") + 1), f"{point} {name}"
        newest = steps[-1]
    finish(killed, *overrides)
    assert trace(killed) == trace(original)
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["step_00000020"]


OTHER_PLACES = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("pmf.tensors.save_file", "os.fsync", "os.replace")
]


@pytest.mark.parametrize("target", ["os.rename", *OTHER_PLACES])
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
    with started(
        run, EVERY_FOUR, ranks=2, faults={1: SignalAt("pmf.training.step.TrainingStep._backward", 7)}
    ) as killed:
        statuses = killed.wait()
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] not in (0, None)
    assert "(step 4 of 12)" in finish(run, EVERY_FOUR, ranks=2)
    assert trace(run) == trace(whole(2))


@pytest.mark.slow
def test_torchrun_starts_again_after_a_crash(whole, tmp_path):
    run = tmp_path / "run"
    result = launch(
        *torchrun(2),
        "--max-restarts=1",
        str(ROOT / "tests" / "faults" / "crash_once.py"),
        "--config",
        str(ROOT / "configs" / "digits.yaml"),
        *TINY,
        EVERY_FOUR,
        f"training.output_dir={run}",
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",  # as docs/launching.md says
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
        pytest.param(2, 2, "bf16", marks=pytest.mark.slow),
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
    kind = (f"training.mixed_precision={precision}", *(SMALLER if precision == "bf16" else ()))
    overrides = (*kind, "training.checkpoint_every=5", f"data.num_workers={workers}")
    faults = {rank: SignalAt(STEP, 7) for rank in range(ranks)}
    with started(run, *overrides, ranks=ranks, faults=faults) as killed:
        assert killed.wait() == [-signal.SIGKILL] * ranks, killed.printed()
    assert "(step 5 of 12)" in finish(run, *overrides, ranks=ranks)
    assert trace(run) == trace(whole(ranks, *kind))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_ten_kills_at_random_times(ranks, whole, tmp_path):
    """Of one run, which gets further between them; of rank 0 or rank 1, and soon of the other, as launchers do."""
    random_numbers = random.Random(ranks)
    length = "training.max_steps=40"  # a quick machine must not be done before the first kill
    run, overrides = tmp_path / "run", (length, "training.checkpoint_every=1", "training.keep_checkpoints=2")
    for _ in range(10):
        with started(run, *overrides, ranks=ranks) as killed:
            time.sleep(random_numbers.uniform(0, 2))
            first = random_numbers.randrange(ranks)
            for rank in (first, ranks - 1 - first):
                with contextlib.suppress(ProcessLookupError):  # it has ended already
                    killed.signal(signal.SIGKILL, rank)
                time.sleep(random_numbers.uniform(0, 0.5))
            killed.wait()
        assert all(find_damage(path) is None for path in list_checkpoints(run))
    finish(run, *overrides, ranks=ranks)
    assert trace(run) == trace(whole(ranks, length))
