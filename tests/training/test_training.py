"""Whole runs: resuming bit for bit, one process against two, faults of numbers and of users."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from pmf.checkpoint.places import list_checkpoints
from pmf.config.network import network_of
from pmf.errors import UserError
from pmf.training.step import MAX_SKIPPED_IN_A_ROW
from pmf.training.trainer import Trainer
from tests.launch import run_command, train_tiny
from tests.runs import METHODS, assert_same_run, cut_back_to, metrics_of, poison, tensors_of, tiny_config


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    """Within one process; tests/faults/test_kill.py has workers, ranks and bfloat16."""
    # 5 does not divide the logging interval: the open window of metrics is carried over too
    extra = ("training.checkpoint_every=5", "training.log_every=4")
    Trainer(tiny_config(tmp_path / "whole", *extra)).train()
    cut_back_to(tmp_path / "whole", tmp_path / "resumed", 5)
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(tiny_config(tmp_path / "resumed", *extra))
    assert trainer.state.progress.step == 5
    trainer.train()
    assert_same_run(tmp_path / "whole", tmp_path / "resumed", 12)
    assert len(metrics_of(tmp_path / "whole")) == 3


def test_two_processes_resume_to_the_bit_and_equal_one_process(tmp_path):
    printed = train_tiny(tmp_path / "two", ranks=2)
    assert "world: 2 process(es) on cpu; batch 16 = 8 x 1 accumulation x 2" in printed
    cut_back_to(tmp_path / "two", tmp_path / "resumed", 6)
    assert "step 6 of 12" in train_tiny(tmp_path / "resumed", ranks=2)
    assert_same_run(tmp_path / "two", tmp_path / "resumed", 12)

    # The same micro-batches and draws on one process, which adds gradients in another order. Newton-Schulz enlarges
    # the rounding of directions with tiny singular values, so weights may move apart by a small part of a step (1e-3).
    config = tiny_config(tmp_path / "one", "training.checkpoint_every=3", "training.max_steps=3")
    Trainer(config).train()
    train_tiny(tmp_path / "two_short", "training.checkpoint_every=3", "training.max_steps=3", ranks=2)
    one, two = (tensors_of(tmp_path / run / "checkpoints" / "step_00000003") for run in ("one", "two_short"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-4, msg=name)
    for a, b in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two_short"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("config", METHODS)
def test_gradients_on_two_processes_equal_those_on_one(tmp_path, config):
    for ranks in (1, 2):
        outputs = (f"{tmp_path}/{ranks}.safetensors", f"{tmp_path}/run{ranks}")
        result = run_command("tests/gradient_worker.py", *outputs, config, ranks=ranks)
        assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / f"{ranks}.safetensors") for ranks in (1, 2))
    assert int(two.pop("world_size")) == 2
    assert int(one.pop("world_size")) == 1
    network = network_of(tiny_config(tmp_path, config=config))
    assert one.keys() == two.keys() == dict(network.named_parameters()).keys()
    for name in one:
        # Means of the same four micro-batch gradients in float32, added in another order.
        difference = float((one[name] - two[name]).norm() / one[name].norm().clamp_min(1e-20))
        assert float(one[name].norm()) > 0, name
        assert difference < 1e-6, name


def test_samples_follow_the_seed_and_step_and_not_the_loader(tmp_path):
    Trainer(tiny_config(tmp_path / "a", "data.num_workers=0")).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    Trainer(tiny_config(tmp_path / "b", "data.num_workers=2", "data.prefetch_factor=1")).train()
    assert_same_run(tmp_path / "a", tmp_path / "b", 12)


def test_a_non_finite_gradient_changes_nothing_and_is_counted(tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run"))
    batches = list(trainer._batches())
    trainer.train_step(batches[0:2])
    before = {
        name: tensor.clone() for name, tensor in trainer.state.to_checkpoint(trainer.config, 1).tensors["model"].items()
    }
    average = {name: tensor.clone() for name, tensor in trainer.state.averages.state("10").items()}
    moments = {k: v.clone() for k, v in trainer.state.optimizer.named_state(trainer.state.network).items()}
    healthy = trainer.train_step.objective.adaptive
    poison(trainer)
    trainer.train_step(batches[2:4])
    assert trainer.state.progress.step == 2
    assert trainer.state.progress.skipped == 1
    for name, tensor in trainer.state.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in trainer.state.averages.state("10").items():
        assert torch.equal(tensor, average[name]), name
    for name, tensor in trainer.state.optimizer.named_state(trainer.state.network).items():
        assert torch.equal(tensor, moments[name]), name
    trainer.train_step.objective.adaptive = healthy
    trainer.train_step(batches[4:6])
    assert trainer.state.progress.skipped_in_a_row == 0
    assert all(math.isfinite(value) for value in trainer.state.progress.window_sums.values())


def test_a_log_line_after_skipped_steps_only_does_not_end_the_run(tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", "training.log_every=1", "training.max_steps=3"))
    poison(trainer)
    trainer.train()
    assert [line["skipped"] for line in metrics_of(tmp_path / "run")] == [1, 2, 3]
    assert len(list_checkpoints(tmp_path / "run")) == 1


def test_going_back_to_an_older_checkpoint_sets_the_newer_ones_aside(tmp_path):
    Trainer(tiny_config(tmp_path / "run", "training.checkpoint_every=4")).train()
    older = tmp_path / "run" / "checkpoints" / "step_00000004"
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(tiny_config(tmp_path / "run", "training.checkpoint_every=4"), resume=str(older))
    assert trainer.state.progress.step == 4
    assert list_checkpoints(tmp_path / "run") == [older]
    kept = sorted(path.name for path in older.parent.glob("abandoned_*"))
    assert [name.rpartition("_")[0] for name in kept] == ["abandoned_step_00000008", "abandoned_step_00000012"]


def test_too_many_non_finite_gradients_in_a_row_end_the_run(tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", "training.max_steps=30"))
    batches = list(trainer._batches())
    poison(trainer)
    with pytest.raises(UserError, match=f"not finite {MAX_SKIPPED_IN_A_ROW} times in a row"):
        for step in range(30):
            trainer.train_step(batches[2 * step : 2 * step + 2])


def test_gradient_clipping_limits_the_norm_that_the_optimizer_sees(tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", "training.gradient_clip=0.5"))
    seen = []
    move = trainer.state.optimizer.move

    def spy(rates):
        gradients = [p.grad for p in trainer.state.network.parameters()]
        seen.append(float(torch.nn.utils.get_total_norm(gradients)))
        move(rates)

    trainer.state.optimizer.move = spy
    trainer.train_step(list(trainer._batches())[:2])
    assert seen == [pytest.approx(0.5, rel=1e-4)]
    assert trainer.state.progress.window_sums["grad_norm"] > 0.5


def test_the_resolved_config_can_be_printed():
    result = run_command("train.py", "--config", "configs/digits.yaml", "--print-config", "training.seed=7")
    assert result.returncode == 0
    assert "seed: 7" in result.stdout
