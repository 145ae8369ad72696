"""Calling a command in this process, as ``python train.py ...`` does, and reading the one line it ends with."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import train as train_command
from pmf.commands import run_command
from pmf.config.yaml_file import load_config
from pmf.training.trainer import Trainer
from tests.bad_input.cases import DIGITS, Case
from tests.launch import TINY


@pytest.fixture(scope="session")
def finished_run(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A run folder with one checkpoint."""

    def train(folder: Path) -> None:
        Trainer(load_config(DIGITS, [*TINY, "training.max_steps=1", f"training.output_dir={folder}"])).train()
        AcceleratorState._reset_state(reset_partial_state=True)

    return once("finished run", train)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls a command that must end with status 2; returns what it printed to stderr."""

    def call(main: Callable[[], None], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_command(main)
        assert left.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.fixture
def refused(fails: Callable[..., str], request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Calls a command in the circumstances of a case; returns the one line of its error, without ``error: ``.

    Nothing is left of a pickle's or a YAML tag's code, which would have made a folder ``hacked``.
    """

    def call(main: Callable[[], None], case: Case, *arguments: str) -> str:
        if case.prepare:
            case.prepare(tmp_path)
        places = {"{tmp}": str(tmp_path)}
        if any("{run}" in text for text in arguments):
            places["{run}"] = str(request.getfixturevalue("finished_run"))
        given = list(arguments)
        for name, place in places.items():
            given = [text.replace(name, place) for text in given]
        printed = fails(main, *given)
        for name, place in places.items():
            printed = printed.replace(place, name)
        assert not (tmp_path / "hacked").exists()
        # A mistake that is found while training or measuring stands below a progress bar.
        lines = [line for line in printed.splitlines() if line and not re.search(r"\d+/\d+ \[.*/s\]$", line)]
        assert len(lines) == 1, printed
        assert lines[0].startswith("error: ")
        line = re.sub(r"[\d.,]+ [MGT]iB", "SIZE", lines[0].removeprefix("error: "))
        line = re.sub(r"\d+ bytes instead of \d+", "N bytes instead of N", line)
        beginning = case.message.removesuffix("...")
        return line if beginning == case.message else line[: len(beginning)] + "..."

    return call


@pytest.fixture
def training_refused(
    refused: Callable[..., str], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Case], str]:
    """The same for ``train.py``, which takes no step: the tiny run in ``{tmp}/run``, without a compiler at hand."""

    def call(case: Case) -> str:
        config = DIGITS
        if case.yaml is not None:
            config = str(tmp_path / "run.yaml")
            Path(config).write_text(case.yaml.replace("{tmp}", str(tmp_path)))
        if case.continues:
            shutil.copytree(request.getfixturevalue("finished_run"), tmp_path / "run")
        for variable in ("CC", "CXX"):
            monkeypatch.setenv(variable, str(tmp_path / "no-compiler"))
        overrides = [*TINY, "training.output_dir={tmp}/run", *case.arguments]
        line = refused(train_command.main, case, "--config", config, "--resume", case.resume, *overrides)
        if not case.continues:
            assert not (tmp_path / "run" / "metrics.jsonl").exists()
            assert not (tmp_path / "run" / "checkpoints").exists()
        return line

    return call
