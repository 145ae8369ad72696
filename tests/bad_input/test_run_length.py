"""A run that is asked to end before the step that it has reached."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from pmf.errors import UserError
from pmf.training.trainer import Trainer
from tests.launch import ROOT, TINY, run_command
from tests.runs import metrics_of, tensors_of, tiny_config

DIGITS = str(ROOT / "configs" / "digits.yaml")
SHORT = ("data.kind=synthetic", "data.num_images=48", "training.max_steps=null")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two epochs of three steps of sixteen images; nothing below may change it."""
    folder = tmp_path_factory.mktemp("length") / "run"
    Trainer(tiny_config(folder, *SHORT, "training.epochs=2")).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def contents(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        (["training.max_steps=5"], "max_steps is 5"),
        (["training.max_steps=1"], "max_steps is 1"),
        (["training.epochs=1.5"], "epochs is 1.5"),
        (["training.epochs=1", "training.global_batch_size=24"], "epochs is 1"),
    ],
)
def test_less_than_the_saved_step_is_refused_and_changes_nothing(run, overrides, asked):
    before = contents(run)
    with pytest.raises(UserError) as error:
        Trainer(tiny_config(run, *SHORT, *overrides))
    assert str(error.value) == (
        f"training.{asked}, and this run is beyond that, at step 6; raise it, name an older checkpoint with --resume, "
        "or choose another training.output_dir"
    )
    assert contents(run) == before


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_command_says_it_once_and_ends_with_status_2(run, ranks, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")  # this process holds the lock of the other
    before = contents(run)
    arguments = [*TINY, *SHORT, f"training.output_dir={run}", "training.max_steps=4"]
    result = run_command("train.py", "--config", DIGITS, *arguments, ranks=ranks)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: training.max_steps is 4, and this run is beyond that, at step 6; raise it")
    assert "Traceback" not in result.stderr
    assert " of 4" not in result.stdout
    assert contents(run) == before


def test_exactly_the_saved_step_is_a_finished_run(run, capsys):
    weights, metrics = tensors_of(run / "checkpoints" / "step_00000006"), metrics_of(run)
    Trainer(tiny_config(run, *SHORT, "training.max_steps=6", "sampling.final_images=10")).train()
    printed = capsys.readouterr().out
    assert "(step 6 of 6)" in printed
    assert "this run is finished; to train on, raise training.max_steps or training.epochs" in printed
    assert len(list((run / "samples" / "final_step_00000006").rglob("*.png"))) == 10
    after = tensors_of(run / "checkpoints" / "step_00000006")
    assert [name for name in weights if not weights[name].equal(after[name])] == []
    assert metrics_of(run) == metrics
