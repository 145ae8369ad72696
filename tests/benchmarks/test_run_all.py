"""One benchmark cannot take the results of the others with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

import pytest

from benchmarks import bench_loader, bench_memory, bench_optimizer, run_all
from benchmarks.result_file import ResultFile

PARTIAL = "import json, pathlib, sys; pathlib.Path(sys.argv[-1]).write_text(json.dumps({'milliseconds': {'a': 3.0}}))\n"
SCRIPTS = {
    "fails.py": PARTIAL + "raise RuntimeError('CUDA out of memory')",
    "crashes.py": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "lacks_a_package.py": "import a_package_that_nobody_has.part",
    # What the others have left in the result file by now is what this one measures.
    "looks.py": (
        "import json, pathlib, sys\n"
        "(file,) = pathlib.Path(sys.argv[1]).glob('*.json')\n"
        "found = json.loads(file.read_text())['benchmarks']\n"
        "pathlib.Path(sys.argv[-1]).write_text(json.dumps({'milliseconds': {'b': 7.0}, 'found': found}))\n"
    ),
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The command on benchmarks that are made for it, its file in ``results``."""
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    results = tmp_path / "results"
    scripts = {name.removesuffix(".py"): [str(tmp_path / name), str(results)] for name in SCRIPTS}
    monkeypatch.setattr(run_all, "CPU_RUNS", scripts)
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--output", str(results)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return results


def test_what_fails_or_lacks_a_package_is_recorded_and_the_next_one_runs(runs, capsys):
    with pytest.raises(SystemExit) as end:
        run_all.main()
    assert end.value.code == 1
    (file,) = runs.glob("[!.]*.json")
    benchmarks = json.loads(file.read_text())["benchmarks"]
    assert {name: found["status"] for name, found in benchmarks.items()} == {
        "fails": "failed",
        "crashes": "failed",
        "lacks_a_package": "needs a_package_that_nobody_has",
        "looks": "ok",
    }
    assert benchmarks["fails"]["result"] == {"milliseconds": {"a": 3.0}}, "what it measured before"
    assert benchmarks["fails"]["stderr"][-1] == "RuntimeError: CUDA out of memory"
    assert benchmarks["crashes"]["exit_status"] == -11
    seen = benchmarks["looks"]["result"]["found"]
    assert {name: seen[name] for name in list(seen)[:3]} == {name: benchmarks[name] for name in list(seen)[:3]}
    printed = capsys.readouterr().out
    for row in ("| fails | a, ms | 3 |", "| looks | b, ms | 7 |", "| lacks_a_package | needs a_package_that"):
        assert row in printed


def test_a_second_call_on_the_same_day_overwrites_nothing(runs, monkeypatch):
    (script,) = [command for name, command in run_all.CPU_RUNS.items() if name == "fails"]
    monkeypatch.setattr(run_all, "CPU_RUNS", {"fails": script})
    for _ in range(2):
        with pytest.raises(SystemExit):
            run_all.main()
    assert len(list(runs.glob("[!.]*.json"))) == 2


def interrupted_at_the_second(result: object) -> Callable[..., object]:
    """A measurement that takes no time; Ctrl-C comes in its second call."""
    calls: list[tuple] = []

    def measure(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    return measure


LOADED = bench_loader.Measurement(
    workers=3, first_batch_seconds=1.0, images_per_second=2.0, images_per_second_per_worker=4.0
)


@pytest.mark.parametrize(
    ("benchmark", "measurement", "result", "arguments", "expected"),
    [
        ("bench_loader", "measure", LOADED, ["--images", "4", "--workers", "3", "4"], {"results": [asdict(LOADED)]}),
        (
            "bench_memory",
            "compare",
            bench_memory.Comparison(measured=4, estimated=5),
            ["--cases", "digits"],
            {"largest_error": 0.25},
        ),
        (
            "bench_evaluation",
            "seconds_of",
            0.5,
            ["--batch-size", "2"],
            {"images_per_second": {"inception and sums": 4.0}},
        ),
    ],
)
def test_each_measurement_is_in_the_file_before_the_next_one_begins(
    benchmark, measurement, result, arguments, expected, tmp_path, monkeypatch
):
    module = pytest.importorskip(f"benchmarks.{benchmark}")  # that of evaluation needs torch-fidelity
    monkeypatch.setattr(module, measurement, interrupted_at_the_second(result))
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--json", str(tmp_path / "out.json")])
    with pytest.raises(KeyboardInterrupt):
        module.main()
    content = json.loads((tmp_path / "out.json").read_text())
    assert {key: content[key] for key in expected} == expected
    assert content["hardware"] and content["versions"]["torch"]


def test_each_round_of_the_optimizers_is_in_the_file_before_the_next_one_begins(tmp_path):
    calls: list[int] = []

    def step() -> None:
        calls.append(1)
        if len(calls) == 4:  # once to warm up, two rounds, and then
            raise KeyboardInterrupt

    record = ResultFile(tmp_path / "out.json", {})
    with pytest.raises(KeyboardInterrupt):
        bench_optimizer.median_milliseconds({"Muon": step}, 9, "cpu", record)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["rounds"] == 2 and content["milliseconds"]["Muon"] > 0
