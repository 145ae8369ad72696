"""A run that is resumed with another batch size: what counts images goes on counting them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from pmf.checkpoint.places import list_checkpoints
from pmf.files import file_sha256
from pmf.optim.ema import WeightAverages
from pmf.training.trainer import Trainer
from tests.runs import assert_same_run, cut_back_to, metrics_of, tiny_config

IMAGES = 50
STRETCHES = ((16, 4), (10, 7), (24, 9))
"""Batch size, and the step that it is used until: three epochs of 50 images, with changes in the middle of two."""
EVERY = 40


def train(run: Path, batch: int, until: int, *overrides: str) -> list[list[int]]:
    """Up to a step; returns each step's samples."""
    trainer = Trainer(
        tiny_config(
            run,
            "data.kind=synthetic",
            f"data.num_images={IMAGES}",
            f"training.global_batch_size={batch}",
            "training.micro_batch_size=2",
            f"training.max_steps={until}",
            "training.log_every=1",
            *overrides,
        )
    )
    seen, step = [], trainer.train_step

    def look_and_step(batches):
        seen.append([index for batch in batches for index in batch.indices.tolist()])
        return step(batches)

    trainer.train_step = look_and_step
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return seen


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """The run, its samples, and what its averages were told."""
    run, samples, told = tmp_path_factory.mktemp("changed") / "run", [], []
    rates = WeightAverages.rates

    def look_and_tell(self, images_seen, images_per_step):
        told.append((images_seen, images_per_step))
        return rates(self, images_seen, images_per_step)

    evaluation = (f"evaluation.every_images={EVERY}", "evaluation.num_images=10", "evaluation.reference=digits")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(WeightAverages, "rates", look_and_tell)
        for batch, until in STRETCHES:
            samples += train(run, batch, until, *evaluation)
    return run, samples, told


COUNTED = [16, 32, 48, 64, 74, 84, 94, 118, 142]


def test_images_are_counted_in_metrics_and_averages(changed):
    run, _, told = changed
    lines = [line for line in metrics_of(run) if "fid" not in line]
    assert [(line["step"], line["images"]) for line in lines] == list(enumerate(COUNTED, start=1))
    assert told == [(images, images - before) for before, images in zip([0, *COUNTED], COUNTED)]
    epochs = [line["epoch"] for line in lines]
    assert epochs == sorted(epochs)
    # 48 images, one batch left over; 16 + 30 are 46 of the second epoch; 48 of the third.
    assert epochs == pytest.approx([1 / 3, 2 / 3, 1, 1 + 16 / 48, 1 + 26 / 46, 1 + 36 / 46, 2, 2.5, 3], rel=1e-12)


def test_evaluations_come_after_so_many_images(changed):
    run, _, _ = changed
    lines = [line for line in metrics_of(run) if "fid" in line]
    assert [(line["step"], line["images"]) for line in lines] == [(3, 48), (6, 84), (9, 142)]
    records = [json.loads(path.read_text()) for path in sorted((run / "evaluation").glob("*.json"))]
    assert [(record["step"], record["images_seen"]) for record in records] == [(3, 48), (6, 84), (9, 142)]


def test_each_epoch_goes_on_with_images_that_it_has_not_had(changed):
    _, samples, _ = changed
    for first, last, images in ((0, 3, 48), (3, 7, 46), (7, 9, 48)):
        seen = [index for batch in samples[first:last] for index in batch]
        assert len(seen) == len(set(seen)) == images


def as_format_1(checkpoint: Path) -> None:
    """What a checkpoint was before images were counted: its step times its batch size."""
    state = json.loads((checkpoint / "state.json").read_text())
    for name in ("images", "last_images", "place"):
        del state["progress"][name]
    batch = state["config"]["training"]["global_batch_size"]
    state = {**state, "format": 1, "images_seen": state["step"] * batch}
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    size = (checkpoint / "state.json").stat().st_size
    manifest["state.json"] = {"bytes": size, "sha256": file_sha256(checkpoint / "state.json")}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Twelve steps of sixteen, a checkpoint after the eighth: past the middle of the third epoch."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, train(run, 16, 12, "training.checkpoint_every=8")


def test_a_checkpoint_without_the_count_goes_on_to_the_bit(whole, tmp_path):
    run, samples = whole
    cut_back_to(run, tmp_path / "run", 8)
    as_format_1(list_checkpoints(tmp_path / "run")[-1])
    assert train(tmp_path / "run", 16, 12, "training.checkpoint_every=8") == samples[8:]
    assert_same_run(run, tmp_path / "run", 12)


def test_a_checkpoint_without_the_count_goes_on_with_another_batch(whole, tmp_path):
    run, samples = whole
    cut_back_to(run, tmp_path / "run", 8)
    as_format_1(list_checkpoints(tmp_path / "run")[-1])
    (rest, *_) = train(tmp_path / "run", 10, 10)
    third_epoch = [index for batch in samples[6:8] for index in batch]
    assert len(set(rest + third_epoch)) == 10 + 32
    assert [line["images"] for line in metrics_of(tmp_path / "run")[-3:]] == [128, 138, 148]


def test_a_schedule_is_checked_against_the_length_that_the_run_goes_on_to(tmp_path):
    """Two epochs of 4 images a step are 24 steps, of 16 only 6; after one epoch of 4 the run goes on to step 15."""
    epochs = ("training.max_steps=null", "training.epochs=2", "training.checkpoint_every=12")
    schedule = ("optimizer.schedule=warmup_cosine", "optimizer.warmup_steps=3")
    train(tmp_path / "whole", 4, 0, *epochs, *schedule)
    cut_back_to(tmp_path / "whole", tmp_path / "run", 12)
    assert len(train(tmp_path / "run", 16, 0, *epochs, *schedule)) == 3
