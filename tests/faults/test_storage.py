"""Disks that are full, folders that cannot be written or are in use, and who may read what is written."""

from __future__ import annotations

import errno
import os
import signal
import stat

from pmf.checkpoint.places import list_checkpoints
from tests.faults.faults import All, FullDisk, NoFolderFlush, NoLocks, NoRights, Umask
from tests.faults.processes import EVERY_FOUR, cut_back, finish, started, trace


def test_files_that_may_not_grow_for_rank_0_end_the_run_in_one_line(whole, tmp_path):
    run = cut_back(whole(2), tmp_path / "run", 4)
    # The weights are 0.3 MB; metrics, logs and samples stay far below the limit.
    with started(run, EVERY_FOUR, ranks=2, faults={0: FullDisk(150_000)}) as full:
        assert full.wait() == [2, 2], full.printed()
        printed = full.printed()
    (line,) = [line for line in printed.splitlines() if "error" in line]
    assert line.startswith(f"error: {run}/checkpoints/step_00000008: this checkpoint cannot be written (")
    assert line.endswith(
        "those before it are intact: raise the limit on the size of files (ulimit -f) and start the same command again"
    )
    assert "Traceback" not in printed
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000004"]
    finish(run, EVERY_FOUR, ranks=2)
    assert trace(run) == trace(whole(2))


def test_a_file_system_without_locks_and_flushes_of_folders_is_told_and_used(whole, tmp_path):
    run = cut_back(whole(1), tmp_path / "run", 4)
    (run / ".lock").write_text("process 7 on another\n")
    poor = All((NoLocks(errno.ENOLCK), NoFolderFlush(errno.EINVAL)))
    with started(run, EVERY_FOUR, faults={0: poor}) as resumed:
        assert resumed.wait() == [0], resumed.printed()
        printed = resumed.printed()
    assert trace(run) == trace(whole(1))
    place = f"warning: training.output_dir {run}: this file system"
    assert [line for line in printed.splitlines() if line.startswith(place)] == [
        f"{place} has no locks (No locks available), so nothing keeps a second run out of the folder: see that no "
        "other works in it (the last was process 7 on another)",
        f"{place} cannot flush a folder (Invalid argument): after a crash of the machine or its storage, not of the "
        "run, the newest checkpoint may be missing",
    ]


def test_a_read_only_folder_is_one_line(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with started(tmp_path / "run", f"training.output_dir={closed}/run", faults={0: NoRights()}) as refused:
        assert refused.wait() == [2], refused.printed()
        (line,) = [line for line in refused.printed().splitlines() if line.startswith("error: ")]
    # Root may write anywhere, and finds out only when the test takes its rights away.
    problem = f"{closed}/run: cannot be written (Permission denied)"
    if os.getuid() != 0:
        problem = f"{closed}/run: {closed} may not be written to"
    assert line == f"error: training.output_dir {problem}; choose another"


def test_a_second_process_is_refused_and_the_first_goes_on(whole, tmp_path):
    run = tmp_path / "run"
    with started(run, EVERY_FOUR) as first:
        first.wait_until(lambda: bool(list_checkpoints(run)))
        first.signal(signal.SIGSTOP)
        with started(run, EVERY_FOUR) as second:
            assert second.wait() == [2]
            (line,) = [line for line in second.printed().splitlines() if "error" in line]
            assert line.startswith(f"error: training.output_dir {run}: in use by process {first.pid()} on ")
        first.signal(signal.SIGCONT)
        assert first.wait() == [0], first.printed()
    assert trace(run) == trace(whole(1))


def test_the_modes_of_files_are_those_of_the_umask(tmp_path):
    """0o027: the group may read all of it, others nothing."""
    run = tmp_path / "run"
    with started(run, "training.max_steps=1", "training.sample_every=1", faults={0: Umask(0o027)}) as short:
        assert short.wait() == [0], short.printed()
    paths = [run, *run.rglob("*")]
    assert len(paths) > 10
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in paths}
    wanted = {name: 0o750 if (tmp_path / name).is_dir() else 0o640 for name in modes}
    assert modes == wanted
