"""A place for results that cannot be written to is told before anything is measured; so is a file of something else."""

from __future__ import annotations

import json

import pytest

from tests.launch import run_command

WRITE_ONE_FILE = (
    "bench_step.py",
    "bench_optimizer.py",
    "bench_sampling.py",
    "bench_loader.py",
    "bench_memory.py",
    "bench_evaluation.py",
)


def refused(script: str, *arguments: str) -> str:
    """The one line of a command that ends with status 2."""
    result = run_command(f"benchmarks/{script}", *arguments)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("script", WRITE_ONE_FILE)
def test_a_result_file_that_cannot_be_made(script, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "result.json"
    line = refused(script, "--json", str(place))
    assert line.startswith(f"error: {place}: cannot be written (") and line.endswith("choose another place")


@pytest.mark.parametrize(("script", "option"), [("run_all.py", "--output"), ("first_contact.py", "--out")])
def test_a_result_folder_that_cannot_be_made(script, option, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(script, option, str(tmp_path / "file" / "results"))
    assert str(tmp_path / "file" / "results") in line and "choose another" in line


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", json.dumps({"stages": {}, "versions": {}})])
def test_a_report_of_something_else(content, tmp_path):
    file = tmp_path / "result.json"
    if content is not None:
        file.write_text(content)
    line = refused("report.py", str(file))
    assert line.startswith(f"error: {file}: ")
