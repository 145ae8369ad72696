"""Steps that do not end: the run does, and says who hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from pmf.distributed.world import ALONE
from pmf.training.watchdog import HUNG_STATUS, Watchdog
from tests import launch
from tests.faults.faults import STEP, SignalAt, SignalWorkers
from tests.faults.processes import EVERY_FOUR, finish, started, trace

# Longer than a step on a machine that many tests share.
TIMEOUT = "training.step_timeout=10"


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_the_run_can_go_on(whole, tmp_path):
    run = tmp_path / "run"
    with started(run, EVERY_FOUR, TIMEOUT, ranks=2, faults={1: SignalAt(STEP, 6, (signal.SIGSTOP,))}) as stopped:
        stopped.processes[0].join(240)
        assert stopped.processes[0].exitcode == HUNG_STATUS, stopped.printed()
        printed = stopped.printed()
    assert "rank 0: the stacks of all threads" in printed
    assert 'step.py", line' in printed  # where rank 0 waits for the gradients of the other
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        "error: step 6 did not end within 10 s (training.step_timeout); rank 1 does not answer; "
        "rank 0 waits in step.py:"
    )
    finish(run, EVERY_FOUR, ranks=2)
    assert trace(run) == trace(whole(2))


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_loader_worker_that_dies_or_stops_ends_the_run(number, whole, tmp_path):
    run, workers = tmp_path / "run", tmp_path / "workers"
    overrides = (EVERY_FOUR, TIMEOUT, "data.num_workers=1", "data.prefetch_factor=1")
    try:
        with started(run, *overrides, faults={0: SignalWorkers(6, number, workers)}) as broken:
            (status,) = broken.wait()
            printed = broken.printed()
    finally:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int(workers.read_text()), signal.SIGKILL)
    if number == signal.SIGSTOP:
        assert status == HUNG_STATUS, printed
        assert "rank 0 waits in loader.py:" in printed
    else:
        assert status == 1, printed
        assert "DataLoader worker" in printed
    finish(run, EVERY_FOUR)
    assert trace(run) == trace(whole(1))


def steps_in_time_and_one_that_is_not(_rank: int) -> None:
    watchdog = Watchdog(ALONE, 1)
    for step in (1, 2, 3):
        with watchdog.watch(step):
            time.sleep(0.4)  # in time, each
    time.sleep(3)  # sampling, evaluation: not a step
    print("sampled", flush=True)
    with watchdog.watch(4):
        time.sleep(60)


def test_nothing_is_counted_between_steps(tmp_path):
    with launch.started(steps_in_time_and_one_that_is_not, tmp_path) as run:
        assert run.wait() == [HUNG_STATUS]
    assert run.printed("stdout") == "sampled\n"
    assert "error: step 4 did not end within 1 s" in run.printed("stderr")
