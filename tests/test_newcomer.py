"""The newcomer's table of the README is true: each part is one new file and a row, trained two steps and sampled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pmf.auto_batch.candidate import measure
from pmf.config.yaml_file import load_config
from pmf.costs.memory import MemoryEstimator
from pmf.data.options import SOURCES, DataKind
from pmf.distributed.world import ALONE
from pmf.errors import UserError
from pmf.evaluation.subjects import data_subject
from pmf.flow.objective import OBJECTIVES, Method
from pmf.flow.options import SAMPLERS
from pmf.net.sizes import PIXEL_TRANSFORMER, SIZES, NetworkSize
from pmf.optim.options import AVERAGES, RULES
from pmf.training.trainer import Trainer
from tests.newcomer.loss import Denoising
from tests.newcomer.moments import space_of_moments

MOMENTS = "tests.newcomer.moments"
CONFIG = Path(__file__).parent / "newcomer" / "run.yaml"


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """One row for each file of tests/newcomer, and one for a size."""
    denoising = Method("tests.newcomer.loss:DenoisingOptions", "tests.newcomer.loss:Denoising")
    monkeypatch.setitem(OBJECTIVES, "denoising", denoising)
    monkeypatch.setitem(SOURCES, "greys", DataKind(source="tests.newcomer.data_set:Greys"))
    moments = DataKind(source=f"{MOMENTS}:Moments", codec=f"{MOMENTS}:MomentsCodec", space=space_of_moments)
    monkeypatch.setitem(SOURCES, "moments", moments)
    small = {"width": 32, "depth": 2, "head_depth": 1, "num_heads": 2, "mlp_width": 64, "bottleneck": 16}
    monkeypatch.setitem(SIZES, "pmf_small_4", NetworkSize(PIXEL_TRANSFORMER, patch_size=4, **small))
    monkeypatch.setitem(SAMPLERS, "late_steps", "tests.newcomer.sampler:late_steps")
    monkeypatch.setitem(RULES, "sign", "tests.newcomer.rule:SignDescent")
    monkeypatch.setitem(AVERAGES, "mean_since", "tests.newcomer.average:mean_since")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(run: Path, *changes: str) -> dict[str, dict[str, Tensor]]:
    """Two steps and ten images; the tensors of each checkpoint by file, e.g. ``1/model``."""
    AcceleratorState._reset_state(reset_partial_state=True)
    Trainer(load_config(CONFIG, [*changes, f"training.output_dir={run}"])).train()
    images = sorted((run / "samples" / "final_step_00000002").glob("*.png"))
    assert len(images) == 10
    files = sorted((run / "checkpoints").glob("step_*/*.safetensors"))
    return {f"{int(file.parent.name[5:])}/{file.stem}": load_file(file) for file in files}


def pixels(run: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(run.glob("samples/final_step_*/*.png"))])


def test_a_loss(tmp_path):
    found = train(tmp_path / "run", "objective.name=denoising", "objective.power=1")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # A new network predicts zeros, so the first loss is the mean of |x| over the images of the first step.
    assert losses[0] == pytest.approx(float(found["1/objective"]["errors"][0]) / 8, rel=1e-6)  # float32 means
    assert found["2/objective"]["errors"].tolist() == pytest.approx([8 * sum(losses), 16], rel=1e-6)
    with pytest.raises(UserError, match=r"unknown key objective.time_mean"):  # an option of another loss
        load_config(CONFIG, ["objective.name=denoising", "objective.time_mean=0"])


def test_a_loss_that_asks_for_numbers_is_trained_without_a_count(tmp_path, monkeypatch, capsys):
    loss = Denoising.loss

    def asking(*arguments):
        terms = loss(*arguments)
        assert float(terms.total) >= 0  # which a tensor without contents cannot say
        return terms

    monkeypatch.setattr(Denoising, "loss", asking)
    train(tmp_path / "run", "objective.name=denoising")
    told = capsys.readouterr().out
    assert "warning: the arithmetic of a step is not counted: RuntimeError" in told
    assert "a step takes" not in told


def test_its_state_is_resumed(tmp_path):
    changes = ("objective.name=denoising", "objective.power=1")
    whole = train(tmp_path / "whole", *changes)
    halves = tmp_path / "halves"
    AcceleratorState._reset_state(reset_partial_state=True)
    once = [*changes, "training.max_steps=1", "sampling.final_images=0", f"training.output_dir={halves}"]
    Trainer(load_config(CONFIG, once)).train()
    resumed = train(halves, *changes)
    assert whole.keys() == resumed.keys()
    for file, tensors in whole.items():
        assert all(torch.equal(tensor, resumed[file][name]) for name, tensor in tensors.items()), file


def test_a_data_set(tmp_path):
    train(tmp_path / "run", "data.kind=greys")
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 2 * 8 / 64


def test_a_data_set_with_a_space_of_its_own(tmp_path):
    """Samples are float moments of one channel at half the side; the network never sees the images' shape."""
    shape = ("data.kind=moments", "data.image_size=16")
    found = train(tmp_path / "run", *shape)
    assert found["2/model"]["patch_embedding.bottleneck.weight"].shape[1] == 2  # channels of the space
    assert pixels(tmp_path / "run").shape == (10, 16, 16)
    config = load_config(CONFIG, shape)
    (estimate,) = MemoryEstimator(config, device="cpu")([4])
    assert estimate.peak > 0
    result = measure(config, str(tmp_path / "measured"), steps=3)
    assert not result.out_of_memory
    assert result.seconds > 0


def test_a_data_set_without_pixels_has_neither_perceptual_distances_nor_images_to_measure():
    shape = ["data.kind=moments", "data.image_size=16"]
    with pytest.raises(UserError, match=r"perceptual.lpips is true, but it looks at pixels, and data.kind moments"):
        load_config(CONFIG, [*shape, "perceptual.lpips=true"])
    subject = data_subject(load_config(CONFIG, shape).data, ALONE)
    with pytest.raises(UserError, match="moments: holds float16 numbers and no images; measure the images"):
        next(subject.batches())


def test_a_model_size(tmp_path):
    found = train(tmp_path / "run", "model.name=pmf_small_4")
    assert found["2/model"]["patch_embedding.bottleneck.weight"].shape[-2:] == (4, 4)


def test_a_sampler(tmp_path):
    steps = ("sampling.num_steps=3", "optimizer.lr=0.1")
    train(tmp_path / "late", *steps, "sampling.sampler=late_steps")
    train(tmp_path / "equal", *steps)
    assert (pixels(tmp_path / "late") != pixels(tmp_path / "equal")).any()
    record = json.loads((tmp_path / "late" / "samples" / "final_step_00000002" / "sampling.json").read_text())
    assert "late_steps" in json.dumps(record)


def test_a_rule_of_an_optimizer(tmp_path):
    found = train(tmp_path / "run", "optimizer.name=sign", "optimizer.lr=0.25")
    moved = found["2/model"]["u_output.linear.weight"] - found["1/model"]["u_output.linear.weight"]
    # 0.25 is exact in float32, and the sums round to about 1e-7.
    assert {round(float(step), 5) for step in moved.unique()} <= {-0.25, 0.0, 0.25}
    assert bool(moved.any())


def test_an_average(tmp_path):
    found = train(tmp_path / "run", "ema.others=mean_since_0", "sampling.ema=mean_since_0")
    weights = [found[f"{step}/model"]["u_output.linear.weight"] for step in (1, 2)]
    mean = found["2/ema_mean_since_0"]["u_output.linear.weight"]
    torch.testing.assert_close(mean, (weights[0] + weights[1]) / 2, rtol=1e-6, atol=1e-9)  # one float32 step


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.name=other", "'pmf' or 'denoising'"),
        ("data.kind=other", "'latents', .*'greys',? .*or 'moments'"),
        ("sampling.sampler=other", "'equal_steps' or 'late_steps'"),
        ("optimizer.name=other", "'adamw' or 'sign'"),
    ],
)
def test_a_name_that_is_in_no_row_is_told_the_rows(override, message):
    with pytest.raises(UserError, match=message):
        load_config(CONFIG, [override])
