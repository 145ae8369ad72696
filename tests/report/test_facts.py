"""The facts of a run are those of its last start and its newest checkpoint, whatever else lies in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pmf.config.yaml_file import save_config
from pmf.errors import UserError
from pmf.report.facts import read_facts
from pmf.training.trainer import Trainer
from tests.launch import ROOT
from tests.runs import tiny_config


def write_evaluation(run: Path, name: str, **record: object) -> None:
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / name).write_text(json.dumps(record))


def test_a_run_that_has_trained(tmp_path):
    run = tmp_path / "run"
    config = tiny_config(run, "training.max_steps=null", "training.epochs=0.05", "training.checkpoint_every=4")
    trainer = Trainer(config)
    assert read_facts(run).step == 0  # no checkpoint yet
    trainer.train()
    facts = read_facts(run)
    assert facts.config == config
    assert (facts.step, facts.images_seen) == (6, 96)
    assert facts.max_steps == 6  # 0.05 x 112 batches, rounded up
    assert facts.averages == ("0.05", "10")
    assert facts.evaluations == []
    assert facts.environment["num_images"] == 1797
    assert facts.environment["device"] == "cpu"
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    assert (read_facts(run).step, read_facts(run).max_steps) == (4, 6)
    (run / "checkpoints" / "step_00000004" / "state.json").write_text("{")
    assert read_facts(run).step == 0


def test_a_resume_with_other_options_speaks_of_these_before_its_first_checkpoint(tmp_path):
    run = tmp_path / "run"
    Trainer(tiny_config(run, "training.max_steps=1")).train()
    longer = tiny_config(run, "training.max_steps=3", "sampling.omega=1.25")
    Trainer(longer)
    facts = read_facts(run)
    assert (facts.step, facts.max_steps, facts.config) == (1, 3, longer)


def test_an_old_run(tmp_path):
    shutil.copytree(ROOT / "tests" / "fixtures" / "old_run" / "run", tmp_path / "run")
    facts = read_facts(tmp_path / "run")
    assert (facts.step, facts.images_seen, facts.max_steps) == (2, 16, 4)
    assert facts.environment == {}


def test_evaluations_stand_in_the_order_of_the_training_and_then_of_dates(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "fixtures" / "old_run" / "run", run)  # its checkpoint is of step 2
    write_evaluation(run, "fid_b.json", fid=1.0, date="2026-11-26")
    write_evaluation(run, "fid_a.json", fid=1.5, date="2026-11-27")
    write_evaluation(run, "step_00000002.json", step=2, fid=3.0)
    write_evaluation(run, "step_00000001.json", step=1, fid=4.0)
    write_evaluation(run, "step_00000003.json", step=3, fid=2.0)  # of a course that was given up
    write_evaluation(run, "notes.json", text="no score")
    (run / "evaluation" / "torn.json").write_text("{")
    assert [record["fid"] for record in read_facts(run).evaluations] == [4.0, 3.0, 1.0, 1.5]


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no run folder \(it has no config.yaml\)"):
        read_facts(tmp_path)


def test_a_run_folder_without_records_has_its_config(tmp_path):
    config = tiny_config(tmp_path)
    save_config(config, tmp_path / "config.yaml")
    facts = read_facts(tmp_path)
    assert (facts.config, facts.step, facts.max_steps, facts.environment) == (config, 0, 12, {})
