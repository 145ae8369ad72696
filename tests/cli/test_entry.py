"""``pmf``: its table, how its commands call themselves, and that it starts as the scripts do, also on several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest

from pmf.cli.entry import COMMANDS
from pmf.commands import CommandParser
from pmf.tables import resolve
from tests.launch import ROOT, TINY, launch, run_command, torchrun


@pytest.mark.parametrize("name", COMMANDS)
def test_every_row_leads_to_a_function(name):
    assert callable(resolve(COMMANDS[name].main))


def test_help_names_every_command_in_80_columns(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pmf", "--help"])
    with pytest.raises(SystemExit) as left:
        resolve("pmf.cli.entry:main")()
    printed = capsys.readouterr().out
    assert left.value.code == 0
    rows = [line.split()[0] for line in printed.split("commands:\n")[1].split("\n\n")[0].splitlines()]
    assert rows == list(COMMANDS)
    assert max(map(len, printed.splitlines())) <= 80


def test_the_version_is_that_of_the_project(capsys, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr("sys.argv", ["pmf", "--version"])
    resolve("pmf.cli.entry:main")()
    assert capsys.readouterr().out == f"pmf {project['version']}\n"


@pytest.mark.parametrize(
    ("argv", "main", "name"),
    [
        (["pmf", "train"], "pmf.cli.entry:main", "pmf train"),
        (["/a folder/train.py"], "pmf.cli.train:main", "train.py"),
        (["pmf", "fid"], "pmf.cli.entry:main", "pmf fid"),
        (["/a folder/eval.py", "fid"], "pmf.cli.evaluate:main", "eval.py fid"),
        (["/a folder/eval.py"], "pmf.cli.evaluate:main", "eval.py"),
        (["pmf", "auto-batch"], "pmf.cli.entry:main", "pmf auto-batch"),
        (["auto_batch.py"], "pmf.cli.batch_size:main", "auto_batch.py"),
        (["/x/pmf/doctor.py"], "pmf.doctor:main", "python -m pmf.doctor"),
        (["pmf", "doctor"], "pmf.cli.entry:main", "pmf doctor"),
        (["pmf", "encode"], "pmf.cli.entry:main", "pmf encode"),
        (["/x/pmf/report/__main__.py"], "pmf.report.command:main", "python -m pmf.report"),
        (["pmf", "report"], "pmf.cli.entry:main", "pmf report"),
        (["pmf", "convert", "import"], "pmf.cli.entry:main", "pmf convert import"),
    ],
    ids=" ".join,
)
def test_commands_call_themselves_what_was_typed(argv, main, name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [*argv, "-h"])
    with pytest.raises(SystemExit):
        resolve(main)()
    assert capsys.readouterr().out.startswith(f"usage: {name} [-h]")


def test_torchrun_starts_the_module():
    """What all ranks would print is printed by one."""
    done = launch(*torchrun(2), "-m", "pmf", "train", "--config", "digits", "--print-config", "training.seed=7")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seed: 7") == 1


def test_two_ranks_train_a_recipe_by_its_name_outside_the_repository(tmp_path):
    done = run_command(*("pmf", "train", "--config", "digits", *TINY), "training.output_dir=run", ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "world: 2 process(es) on cpu; batch 16 = 8 x 1 accumulation x 2" in done.stdout + done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step_00000012" / "manifest.json").exists()


def test_verbs_of_the_script_are_commands():
    from pmf.cli.evaluate import VERBS

    assert [name for name in COMMANDS if COMMANDS[name].main == f"pmf.cli.evaluate:{name}"] == list(VERBS)
    assert all(issubclass(row.parser, CommandParser) for row in VERBS.values())


@pytest.mark.parametrize("arguments", ["train --help", "configs digits", "completion bash"])
def test_whoever_reads_may_have_had_enough(arguments):
    """As with `| head`: no traceback, and the status of a program that a closed pipe has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pmf", *arguments.split()], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--confg", "digits"], "there is no --confg; did you mean --config?"),
        (["fid", "--checkpoint", "x", "--refernce=digits"], "there is no --refernce; did you mean --reference?"),
        (["demo", "x", "--prt", "7000"], "there is no --prt; did you mean --port?"),
    ],
)
def test_a_misspelt_flag_is_named(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pmf", *arguments])
    with pytest.raises(SystemExit):
        resolve("pmf.cli.entry:pmf")()
    assert capsys.readouterr().err == f"error: {message}\n"


def test_what_may_be_left_out_is_not_called_required(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pmf", "doctor"])
    with pytest.raises(SystemExit):
        resolve("pmf.cli.entry:pmf")()
    message = "error: the following arguments are required: config; pmf doctor --help shows what there is\n"
    assert capsys.readouterr().err == message
