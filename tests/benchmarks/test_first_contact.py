"""Whatever a stage of benchmarks/first_contact.py does, its result is in the file and the next stage runs."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import first_contact
from benchmarks.contact.child import FAULTS
from benchmarks.contact.runner import Runner
from benchmarks.contact.setting import Setting
from benchmarks.contact.stages import STAGES, Stage
from benchmarks.report import report
from benchmarks.result_file import ResultFile
from tests.benchmarks import contact_stages
from tests.launch import Script, started

COMMAND = "benchmarks/first_contact.py"
NAMES = [stage.name for stage in STAGES]
NEED_CUDA = {stage.name for stage in STAGES if stage.needs_cuda}
ENDING_FAULTS = [fault for fault in FAULTS if fault != "hang"]


def contact(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    """The command in this process, whose server of processes has done the imports; its exit status."""
    monkeypatch.setattr("sys.argv", [COMMAND, "--out", str(folder), *arguments])
    try:
        with mock.patch.dict(os.environ):
            first_contact.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def result_of(folder: Path) -> dict:
    (file,) = folder.glob("[!.]*.json")
    return json.loads(file.read_text())


def is_gone(pid: int) -> bool:
    """Ended, if perhaps not yet waited for by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + 60
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.02)


def test_a_failure_in_each_stage_is_recorded_and_the_others_run(tmp_path, monkeypatch):
    kinds = dict(zip(NAMES, itertools.cycle(ENDING_FAULTS), strict=False))
    faults = [f"--fault={name}={kind}" for name, kind in kinds.items()]
    assert contact(monkeypatch, tmp_path, *faults) == 1
    stages = result_of(tmp_path)["stages"]
    assert list(stages) == NAMES
    told = {"raise": "injected failure", "exit": "injected exit", "kill": "status -9", "segfault": "status -11"}
    assert set(told) == set(ENDING_FAULTS)
    for name, kind in kinds.items():
        assert stages[name]["status"] == "failed", name
        assert told[kind] in stages[name]["error"], name
    raised = [stages[name] for name in NAMES if kinds[name] == "raise"]
    assert all("in _raise" in stage["traceback"] for stage in raised)
    crashed = [stages[name] for name in NAMES if kinds[name] == "segfault"]
    assert all(any("Segmentation fault" in line for line in stage["log"]) for stage in crashed)


def test_stages_after_a_failed_one_measure_and_the_report_shows_both(tmp_path, monkeypatch):
    chosen = ["ceilings", "float64_gradients", "muon_bf16", "synchronisations"]
    assert contact(monkeypatch, tmp_path, "--fault=ceilings=kill", "--only", *chosen) == 1
    content = result_of(tmp_path)
    stages = content["stages"]
    assert {name: stage["status"] for name, stage in stages.items()} == {
        "ceilings": "failed",
        "float64_gradients": "ok",
        "muon_bf16": "ok",
        "synchronisations": "needs CUDA",
    }
    errors = stages["float64_gradients"]["results"]
    assert set(errors) == {"jvp, largest relative error", "dual, largest relative error"}
    # float64 has 16 digits; sums over thousands of terms lose a few.
    assert all(0 < error < 1e-11 for error in errors.values())
    # bfloat16 has 8 bits, and Newton-Schulz pulls what differs back together.
    assert 0 < stages["muon_bf16"]["results"]["relative_difference_of_the_step"] < 2**-7
    assert content["model"] == "pmf_tiny_16" and content["versions"]["torch"]

    text = report(content)
    assert f"| float64_gradients | jvp, largest relative error | {errors['jvp, largest relative error']:.4g} |" in text
    assert "- ceilings: failed (its process ended with exit status -9)" in text
    assert "- synchronisations: needs CUDA" in text
    assert content["hardware"] in text.partition("\n")[0] and content["date"] in text.partition("\n")[0]


@pytest.mark.slow
def test_a_killed_command_leaves_all_that_was_measured_and_no_process(tmp_path):
    arguments = ("--out", str(tmp_path), "--only", "float64_gradients", "muon_bf16", "--fault=muon_bf16=hang")

    def is_hanging() -> bool:
        files = list(tmp_path.glob("[!.]*.json"))
        return (
            bool(files)
            and "running" in json.loads(files[0].read_text()).get("stages", {}).get("muon_bf16", {}).values()
        )

    log = str(tmp_path / "logs" / "muon_bf16.log")
    with started(Script(COMMAND, arguments), tmp_path / "printed") as run:
        run.wait_until(lambda: is_hanging() and bool(holders(log)))
        hanging = holders(log)
        run.signal(signal.SIGKILL)
        assert run.wait() == [-signal.SIGKILL]
        wait_until_gone(*hanging)
    stages = result_of(tmp_path)["stages"]
    assert stages["float64_gradients"]["status"] == "ok"
    assert len(stages["float64_gradients"]["results"]) == 2
    assert [path.name for path in tmp_path.glob(".*")] == [], "nothing half-written"


def holders(path: str) -> list[int]:
    """Processes that have a file open."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == path:
                found.append(int(descriptor.parts[2]))
        except OSError:
            continue
    return sorted(set(found))


def run_stages(tmp_path: Path, *stages: Stage, seconds: float = 300) -> tuple[bool, dict[str, dict]]:
    runner = Runner(
        context=multiprocessing.get_context("forkserver"),
        logs=tmp_path,
        faults={},
        deadline=time.monotonic() + seconds,
    )
    setting = Setting(device="cpu", model="pmf_tiny_16", scratch=tmp_path)
    good = runner.run_all(stages, setting, ResultFile(tmp_path / "result.json", {}))
    return good, json.loads((tmp_path / "result.json").read_text())["stages"]


def test_a_stage_that_hangs_is_ended_with_its_processes_and_says_where(tmp_path):
    hanging = Stage(name="hanging", run=contact_stages.starts_a_process_and_never_ends, limit=3)
    good, stages = run_stages(tmp_path, hanging, Stage(name="next", run=contact_stages.measures, limit=60))
    assert not good
    assert stages["hanging"]["status"] == "out of time"
    assert stages["hanging"]["results"]["first"] == 1
    assert any("in starts_a_process_and_never_ends" in line for line in stages["hanging"]["log"])
    wait_until_gone(*stages["hanging"]["results"]["processes"])
    assert stages["next"]["status"] == "ok"
    assert stages["next"]["results"] == {"first": 1, "second": [2.0, 3.0]}


def test_what_a_stage_measured_before_it_failed_is_kept(tmp_path):
    runs = [contact_stages.fails_half_way, contact_stages.ends_without_a_word, contact_stages.prints]
    good, stages = run_stages(tmp_path, *(Stage(name=run.__name__, run=run, limit=60) for run in runs))
    assert not good
    failed, silent, printed = stages.values()
    assert failed["results"] == silent["results"] == {"first": 1}
    assert failed["error"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert silent["error"] == "its process ended with exit status 7"
    assert printed["error"].startswith("MemoryError") and "what a compiler had to say" in printed["log"]


def test_no_stage_starts_without_the_time_that_it_needs(tmp_path):
    stages = (
        Stage(name="long", run=contact_stages.measures, limit=900, worthwhile=400),
        Stage(name="short", run=contact_stages.measures, limit=900, worthwhile=1),
    )
    good, found = run_stages(tmp_path, *stages, seconds=300)
    assert not good
    assert found["long"] == {"status": "skipped: no time left"}
    assert found["short"]["status"] == "ok"


def test_results_of_an_earlier_call_stay(tmp_path, monkeypatch):
    for _ in range(2):
        assert contact(monkeypatch, tmp_path, "--only", "synchronisations") == 0
    assert len(list(tmp_path.glob("[!.]*.json"))) == 2


@pytest.mark.slow
def test_all_stages_run_on_a_cpu(tmp_path, monkeypatch):
    status = contact(monkeypatch, tmp_path, "--model", "pmf_tiny_16", "--seconds", "900")
    content = result_of(tmp_path)
    stages = content["stages"]
    assert status == 0, [(name, stage.get("error")) for name, stage in stages.items()]
    assert {name for name, stage in stages.items() if stage["status"] == "needs CUDA"} == NEED_CUDA
    found = {name: stage.get("results", {}) for name, stage in stages.items()}
    # Of what 8 and 11 bits of mantissa leave of a gradient, after tens of layers.
    assert found["low_precision_gradients"]["bf16 eager"]["relative_error"] < 0.05
    assert found["low_precision_gradients"]["fp16 eager, scaled"]["relative_error"] < 0.01
    for name in NAMES:
        if name.startswith("steps_") and name not in NEED_CUDA:
            steps = found[name]
            assert steps["images_per_second"] == pytest.approx(steps["global_batch"] / steps["step_s"][0]), name
            assert 0 < steps["optimizer_share"] < 1 and steps["peak_gib"] > 0, name
    perceptual, plain = found["steps_64_perceptual"], found["steps_64"]
    assert perceptual["gflop_per_image"] > plain["gflop_per_image"]
    assert sum(found["kernels"]["micro-batch"]["share"].values()) == pytest.approx(1)
    resumed = found["train_kill_resume"]
    assert [line["step"] for line in resumed["metrics"]] == list(range(1, resumed["killed_after_step"] + 5))
    assert all(math.isfinite(line["loss_u"]) for line in resumed["metrics"])
    text = report(content)
    assert all(f"| {name} |" in text or f"- {name}: needs CUDA" in text for name in NAMES)
