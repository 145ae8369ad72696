"""Evaluation during training: right numbers, nothing disturbed, nothing lost when it is interrupted."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import eval as eval_command
from pmf.errors import Preempted
from pmf.training.trainer import Trainer
from tests.runs import metrics_of, tensors_of, tiny_config

EVALUATION = ("evaluation.every_images=96", "evaluation.num_images=40", "evaluation.reference=digits")


def call(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
    AcceleratorState._reset_state(reset_partial_state=True)
    eval_command.main()


@pytest.fixture(scope="session")
def runs(once):
    """Twelve steps of sixteen images, with evaluation at steps 6 and 12 and without."""

    def train(folder: Path) -> None:
        for name, overrides in (("plain", ()), ("evaluated", EVALUATION)):
            Trainer(tiny_config(folder / name, *overrides)).train()
            AcceleratorState._reset_state(reset_partial_state=True)

    return once("evaluated runs", train)


def test_the_training_is_the_same_bit_for_bit(runs):
    plain, evaluated = (tensors_of(runs / name / "checkpoints" / "step_00000012") for name in ("plain", "evaluated"))
    assert plain.keys() == evaluated.keys()
    assert [name for name in plain if not plain[name].equal(evaluated[name])] == []
    lines = metrics_of(runs / "evaluated")
    assert [line for line in lines if "fid" not in line] == metrics_of(runs / "plain")
    assert [(line["step"], line["images"]) for line in lines if "fid" in line] == [(6, 96), (12, 192)]


def test_the_number_is_that_of_eval_fid_on_the_same_weights(runs, monkeypatch, tmp_path):
    record = json.loads((runs / "evaluated" / "evaluation" / "step_00000012.json").read_text())
    assert (record["step"], record["num_images"], record["images"]["seed"]) == (12, 40, 42)
    assert "covariance has rank 39 at most" in record["warnings"][0]
    arguments = ["fid", "--checkpoint", runs / "evaluated", "--reference", "digits", "--num-images", 40, "--seed", 42]
    call(monkeypatch, *arguments, "--output", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["fid"] == pytest.approx(record["fid"], rel=1e-6)  # equal weights; sums in another order at most
    assert again["inception_score"]["mean"] == pytest.approx(record["inception_score"]["mean"], rel=1e-6)


def test_a_stop_during_evaluation_loses_neither_steps_nor_the_evaluation(runs, tmp_path):
    config = tiny_config(tmp_path / "run", *EVALUATION)
    trainer = Trainer(config)
    trainer.evaluation._stop = AskedAfterTheFirstBatch()
    with pytest.raises(Preempted, match="step 6 of 12 is saved"):
        trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not list((tmp_path / "run" / "evaluation").glob("*")) if (tmp_path / "run" / "evaluation").exists() else True
    Trainer(config).train()
    assert metrics_of(tmp_path / "run") == metrics_of(runs / "evaluated")


class AskedAfterTheFirstBatch:
    """Stands for a signal that arrives while images are generated."""

    def agreed(self) -> bool:
        return True


def test_a_sweep_measures_every_point_once_and_marks_the_best(runs, monkeypatch, tmp_path, capsys):
    output = tmp_path / "sweep"
    arguments = ["sweep", "--checkpoint", runs / "evaluated", "--reference", "digits", "--num-images", 40]
    grid = ["--omega", 1, 3, "--interval", 0, 1, "--interval", 0.2, 0.6, "--ema", "online", 10, "--seed", 42]
    call(monkeypatch, *arguments, *grid, "--output", output)
    rows = list(csv.DictReader((output / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert {(row["omega"], row["t_min"], row["ema"]) for row in rows} == {
        (omega, t_min, ema) for omega in ("1.0", "3.0") for t_min in ("0.0", "0.2") for ema in ("online", "10")
    }
    records = [json.loads(path.read_text()) for path in sorted(output.glob("point_*.json"))]
    assert [float(row["fid"]) for row in rows] == [record["fid"] for record in records]
    best = min(float(row["fid"]) for row in rows)
    (marked,) = [line for line in capsys.readouterr().out.splitlines() if "best FID" in line]
    assert f"{best:.4f}" in marked
    assert (output / "sweep.png").stat().st_size > 5000
    # A point is what eval.py fid says of it.
    point = ["--omega", 3, "--interval", 0.2, 0.6, "--ema", 10, "--seed", 42, "--output", tmp_path / "point.json"]
    call(monkeypatch, "fid", *arguments[1:], *point)
    alone = json.loads((tmp_path / "point.json").read_text())["fid"]
    (same,) = [row for row in rows if (row["omega"], row["t_min"], row["ema"]) == ("3.0", "0.2", "10")]
    assert float(same["fid"]) == pytest.approx(alone, rel=1e-9)
