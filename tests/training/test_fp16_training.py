"""Whole runs in float16: the loss scale, steps that it skips, and what a checkpoint says of it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from pmf.errors import UserError
from pmf.training.step import MAX_SKIPPED_IN_A_ROW
from pmf.training.trainer import Trainer
from tests.faults.faults import NaNImages
from tests.faults.processes import finish, started
from tests.launch import train_tiny
from tests.runs import (
    assert_same_run,
    cut_back_to,
    metrics_of,
    poison,
    tensors_of,
    tiny_config,
)

FP16 = "training.mixed_precision=fp16"
FIRST_SCALE = 2.0**16
# Products in float16 are slow on CPUs: two micro-batches a step, of four images each.
FEW = ("training.global_batch_size=8", "training.micro_batch_size=4")


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, moments, step counts and averages, copied."""
    state = trainer.state
    named = {
        **{f"model/{name}": tensor for name, tensor in state.network.state_dict().items()},
        **{f"optimizer/{name}": tensor for name, tensor in state.optimizer.named_state(state.network).items()},
        **{f"{kept}/{name}": t for kept in state.averages.names for name, t in state.averages.state(kept).items()},
    }
    return {name: tensor.clone() for name, tensor in named.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def saved_scaler(run, step: int) -> dict[str, float]:
    return json.loads((run / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())["scaler"]


def first_gradients(run, precision: str) -> dict[str, Tensor]:
    """What the optimizer sees in the second step (in the first most gradients are 0)."""
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(tiny_config(run, f"training.mixed_precision={precision}", "training.seed=3"))
    seen: dict[str, Tensor] = {}
    move = trainer.state.optimizer.move

    def spy(rates) -> None:
        seen.update({name: p.grad.clone() for name, p in trainer.state.network.named_parameters()})
        move(rates)

    trainer.state.optimizer.move = spy
    batches = list(trainer._batches())
    trainer.train_step(batches[:2])
    trainer.train_step(batches[2:4])
    return seen


def test_unscaled_gradients_are_those_of_float32(tmp_path):
    half, single = (first_gradients(tmp_path / precision, precision) for precision in ("fp16", "no"))
    assert half.keys() == single.keys()
    assert {gradient.dtype for gradient in half.values()} == {torch.float32}
    flat = [torch.cat([gradient.flatten() for gradient in found.values()]) for found in (half, single)]
    error = float((flat[0] - flat[1]).norm() / flat[1].norm())
    # 11 bits a product, after one step from the same start; exactly 0 would mean that nothing ran in float16.
    assert 1e-6 < error < 1e-2


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    extra = (FP16, "training.checkpoint_every=5", "training.log_every=4")
    trainer = Trainer(tiny_config(tmp_path / "whole", *extra))
    trainer.state.scaler.set_growth_interval(7)  # the scale grows after the resume, counted from before
    trainer.train()
    cut_back_to(tmp_path / "whole", tmp_path / "resumed", 5)
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(tiny_config(tmp_path / "resumed", *extra))
    assert trainer.state.progress.step == 5
    trainer.train()
    assert_same_run(tmp_path / "whole", tmp_path / "resumed", 12)
    scalers = [saved_scaler(tmp_path / run, 12) for run in ("whole", "resumed")]
    assert scalers[0] == scalers[1]
    assert scalers[0]["scale"] == 2 * FIRST_SCALE
    assert scalers[0]["_growth_tracker"] == 12 - 7
    assert [line["loss_scale"] / FIRST_SCALE for line in metrics_of(tmp_path / "whole")] == [1, 2, 2]
    assert metrics_of(tmp_path / "whole")[-1]["skipped"] == 0


def test_losses_are_those_of_float32(tmp_path):
    for name, precision in (("half", "fp16"), ("single", "no")):
        AcceleratorState._reset_state(reset_partial_state=True)
        Trainer(tiny_config(tmp_path / name, f"training.mixed_precision={precision}", "training.max_steps=6")).train()
    for half, single in zip(metrics_of(tmp_path / "half"), metrics_of(tmp_path / "single"), strict=True):
        # Muon's orthogonalisation enlarges what float16 rounds in the directions.
        assert half["loss_u"] == pytest.approx(single["loss_u"], rel=2e-2)
        assert half["loss_v"] == pytest.approx(single["loss_v"], rel=2e-2)


def test_an_overflow_changes_nothing_but_the_scale(tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", FP16))
    batches = list(trainer._batches())
    trainer.train_step(batches[0:2])
    before = state_of(trainer)
    trainer.state.scaler.update(2.0**40)
    trainer.train_step(batches[2:4])
    assert changed(before, state_of(trainer)) == []
    assert trainer.state.scaler.get_scale() == 2.0**39
    progress = trainer.state.progress
    assert (progress.step, progress.skipped, progress.skipped_in_a_row, progress.window_steps) == (2, 1, 0, 1)
    trainer.state.scaler.update(FIRST_SCALE)
    trainer.train_step(batches[4:6])
    found = changed(before, state_of(trainer))
    assert {name.partition("/")[0] for name in found} == {"model", "optimizer", "0.05", "10"}
    # The second update of the moments, the third step of the run.
    assert trainer.state.optimizer.param_groups[0]["step"] == 2
    assert all(math.isfinite(value) for value in trainer.state.progress.window_sums.values())


def test_finding_the_scale_does_not_end_a_run(tmp_path):
    """However many halvings it takes: these steps say nothing of the run."""
    trainer = Trainer(tiny_config(tmp_path / "run", FP16, *FEW, "training.max_steps=50", "training.log_every=50"))
    batches = list(trainer._batches())
    start = 2.0**45
    trainer.train_step(batches[0:2])
    trainer.state.scaler.update(start)
    steps = 1
    while trainer.state.progress.skipped == steps - 1:
        trainer.train_step(batches[2 * steps : 2 * steps + 2])
        steps += 1
    skipped = trainer.state.progress.skipped
    assert skipped > MAX_SKIPPED_IN_A_ROW
    assert trainer.state.scaler.get_scale() == start / 2**skipped
    assert trainer.state.progress.skipped_in_a_row == 0


def test_a_run_that_stays_broken_ends_at_the_smallest_scale(tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", FP16, *FEW, "training.max_steps=30"))
    batches = list(trainer._batches())
    trainer.train_step(batches[0:2])
    before = state_of(trainer)
    poison(trainer)
    start = 2.0**4
    trainer.state.scaler.update(start)
    with pytest.raises(UserError, match=f"not finite {MAX_SKIPPED_IN_A_ROW} times in a row.*mixed_precision: bf16"):
        for step in range(1, 30):
            trainer.train_step(batches[2 * step : 2 * step + 2])
    assert trainer.state.scaler.get_scale() == 1.0
    assert trainer.state.progress.skipped == math.log2(start) + MAX_SKIPPED_IN_A_ROW
    assert changed(before, state_of(trainer)) == []


def test_a_norm_that_overflows_in_float32_skips_the_step_too(tmp_path):
    """The scaler looks at numbers one by one and finds nothing; their squares overflow."""
    trainer = Trainer(tiny_config(tmp_path / "run", FP16))
    batches = list(trainer._batches())
    trainer.train_step(batches[0:2])
    before = state_of(trainer)
    unscale = trainer.accelerator.unscale_gradients

    def enlarge() -> None:
        unscale()
        next(trainer.state.network.parameters()).grad.fill_(1e25)

    trainer.accelerator.unscale_gradients = enlarge
    trainer.train_step(batches[2:4])
    assert changed(before, state_of(trainer)) == []
    assert (trainer.state.progress.skipped, trainer.state.progress.skipped_in_a_row) == (1, 1)


def test_two_processes_skip_together_and_go_on(tmp_path):
    """The sixth step is spoiled on one rank: all is as after five but the scale, and one process goes on from there."""
    five, six = tmp_path / "five", tmp_path / "six"
    finish(five, FP16, *FEW, "training.max_steps=5", ranks=2)
    with started(six, FP16, *FEW, "training.max_steps=6", ranks=2, faults={1: NaNImages(6, 6)}) as run:
        assert run.wait() == [0, 0], run.printed()
    saved = (five / "checkpoints" / "step_00000005", six / "checkpoints" / "step_00000006")
    assert changed(*(tensors_of(checkpoint) for checkpoint in saved)) == []
    assert saved_scaler(five, 5)["scale"] == FIRST_SCALE
    assert saved_scaler(six, 6)["scale"] == FIRST_SCALE / 2
    assert "step 6 of 12" in train_tiny(six, FP16, *FEW)
    assert saved_scaler(six, 12)["_growth_tracker"] == 6
    assert metrics_of(six)[-1]["skipped"] == 1


def test_a_run_may_change_its_precision(tmp_path):
    """float16 has a scaler in its checkpoints and the others have none; either goes on from the other's."""
    last = 4
    for precision in ("bf16", "fp16", "no"):
        AcceleratorState._reset_state(reset_partial_state=True)
        changes = (*FEW, f"training.mixed_precision={precision}", f"training.max_steps={last}")
        trainer = Trainer(tiny_config(tmp_path / "run", *changes))
        assert trainer.state.progress.step == last - 4
        trainer.train()
        assert (saved_scaler(tmp_path / "run", last) is not None) == (precision == "fp16")
        last += 4
