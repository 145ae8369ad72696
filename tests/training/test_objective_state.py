"""What an objective may ask of a step: all micro-batches before the first loss, and to save a state of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from pmf.checkpoint.storage import save_checkpoint
from pmf.errors import UserError
from pmf.flow.objective import OBJECTIVES, Method, MicroBatch
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.training.trainer import Trainer
from tests.checkpoint.loading import load_checkpoint
from tests.runs import tiny_config

SHORT = ("training.max_steps=4", "training.checkpoint_every=2")


class WholeBatchMean(PixelMeanFlow):
    """Keeps a running mean of the images of all micro-batches, and weighs the loss with it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mean = torch.zeros(1, 8, 8)
        self.begun: list[list[MicroBatch[Any]]] = []
        self.lost: list[tuple[Tensor, Tensor, Any]] = []

    def begin_step(self, network: Any, micro_batches: Sequence[Callable[[], MicroBatch[Any]]], world: Any) -> None:
        self.begun.append([make() for make in micro_batches])
        self.lost.clear()
        images = torch.cat([micro_batch.images for micro_batch in self.begun[-1]])
        self.mean = 0.9 * self.mean + 0.1 * images.mean(0)

    def loss(self, network: Any, images: Tensor, labels: Tensor, draws: Any) -> Any:
        self.lost.append((images, labels, draws))
        return super().loss(network, images + 0.1 * self.mean, labels, draws)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean = tensors["mean"].clone()


@pytest.fixture
def with_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "pmf", Method(OBJECTIVES["pmf"].options, WholeBatchMean))


def train(folder: Path, *changes: str) -> Trainer:
    trainer = Trainer(tiny_config(folder, *SHORT, *changes))
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:08d}"


@pytest.mark.usefixtures("with_state")
def test_a_step_begins_with_all_its_micro_batches_and_each_loss_gets_the_same_again(tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", *SHORT))
    batches = iter(trainer._batches())
    for _ in range(2):
        trainer.train_step([next(batches) for _ in range(trainer.accumulation)])
    objective = trainer.train_step.objective
    assert isinstance(objective, WholeBatchMean)
    assert [len(begun) for begun in objective.begun] == [2, 2]
    for micro_batch, (images, labels, draws) in zip(objective.begun[-1], objective.lost, strict=True):
        assert micro_batch.images.shape == (8, 1, 8, 8)
        assert torch.equal(micro_batch.images, images)
        assert micro_batch.images is not images  # made anew: nothing holds all of them
        assert torch.equal(micro_batch.labels, labels)
        assert torch.equal(micro_batch.draws.e, draws.e)
        assert torch.equal(micro_batch.draws.t, draws.t)
    first, second = objective.begun[-1]
    assert not torch.equal(first.draws.e, second.draws.e)


@pytest.mark.usefixtures("with_state")
def test_its_state_is_saved_and_a_resumed_run_equals_one_without_interruption(tmp_path):
    train(tmp_path / "whole")
    train(tmp_path / "halves", "training.max_steps=2")
    train(tmp_path / "halves")
    whole, halves = (checkpoint(tmp_path / name, 4) for name in ("whole", "halves"))
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    assert "objective.safetensors" in names
    for name in names:
        expected, found = load_file(whole / name), load_file(halves / name)
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert float(load_file(halves / "objective.safetensors")["mean"].abs().max()) > 0


def test_a_run_without_state_has_no_file_of_it_and_one_that_needs_it_says_what_is_missing(tmp_path, monkeypatch):
    train(tmp_path / "run", "training.max_steps=2")
    assert not (checkpoint(tmp_path / "run", 2) / "objective.safetensors").exists()
    monkeypatch.setitem(OBJECTIVES, "pmf", Method(OBJECTIVES["pmf"].options, WholeBatchMean))
    with pytest.raises(UserError) as caught:
        Trainer(tiny_config(tmp_path / "run", *SHORT))
    assert str(caught.value) == (
        f"{checkpoint(tmp_path / 'run', 2)}: has no objective.safetensors, from which this objective continues; set "
        "objective.name to that of the checkpoint, or begin a new run in another training.output_dir"
    )


def test_the_state_of_another_objective_is_refused_or_left_alone(tmp_path, monkeypatch):
    """Refused by one that has a state, and left alone by one that has none."""
    with monkeypatch.context() as patch:
        patch.setitem(OBJECTIVES, "pmf", Method(OBJECTIVES["pmf"].options, WholeBatchMean))
        train(tmp_path / "run", "training.max_steps=2")
        saved = load_checkpoint(checkpoint(tmp_path / "run", 2))
        saved.tensors["objective"] = {"queue": torch.zeros(3)}
        save_checkpoint(tmp_path / "run", saved, keep=3)
        with pytest.raises(UserError) as caught:
            Trainer(tiny_config(tmp_path / "run", *SHORT))
        AcceleratorState._reset_state(reset_partial_state=True)
    assert str(caught.value) == (
        f"{checkpoint(tmp_path / 'run', 2)}: objective.safetensors is of another objective: mean is missing; queue is "
        "unknown here; set objective.name to that of the checkpoint, or begin a new run in another training.output_dir"
    )
    assert train(tmp_path / "run").state.progress.step == 4
