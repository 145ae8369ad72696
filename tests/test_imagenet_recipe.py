"""The ImageNet recipe on an ImageNet-like Parquet set, with a network that fits a CPU."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from benchmarks.make_parquet import write_image_set
from tests.launch import launch, run_command

NUM_IMAGES = 500


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    write_image_set(folder, NUM_IMAGES)
    return folder


def test_the_b_16_recipe_trains_on_mixed_jpegs_with_workers(imagenet, tmp_path):
    run = tmp_path / "run"
    result = run_command(
        "train.py",
        "--config",
        "configs/pmf_b_16.yaml",
        "model.name=pmf_tiny_16",
        f"data.path={imagenet}",
        "perceptual.lpips=false",
        "perceptual.convnext=false",
        "data.image_size=32",
        "data.num_workers=2",
        "training.epochs=null",
        "training.max_steps=6",
        "training.global_batch_size=32",
        "training.micro_batch_size=16",
        "training.log_every=1",
        "training.sample_every=6",
        f"training.output_dir={run}",
    )
    assert result.returncode == 0, result.stderr
    assert "500 images, 15 steps an epoch, 6 steps in all" in result.stdout + result.stderr
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 7))
    # Six steps of 32 images: the draws move the loss by a few per cent from step to step.
    losses = [line["loss_u"] for line in metrics]
    assert min(losses[3:]) < losses[0], losses
    assert all(np.isfinite(line["grad_norm"]) for line in metrics)
    checkpoint = run / "checkpoints" / "step_00000006"
    names = sorted(path.stem for path in checkpoint.glob("*.safetensors"))
    assert names == ["ema_1000", "ema_2000", "ema_500", "model", "optimizer"]
    assert load_file(checkpoint / "model.safetensors").keys() == load_file(checkpoint / "ema_2000.safetensors").keys()
    assert (run / "samples" / "step_00000006.png").stat().st_size > 1000


@pytest.mark.slow
def test_accelerate_launch_runs_the_command(tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "train.py", "--config", "configs/digits.yaml"]
    overrides = ["training.max_steps=2", "training.global_batch_size=8", "sampling.final_images=0"]
    result = launch(*launcher, *overrides, f"training.output_dir={tmp_path}", "training.sample_every=0")
    assert result.returncode == 0, result.stderr
    assert "world: 1 process(es) on cpu" in result.stdout + result.stderr
    assert (tmp_path / "checkpoints" / "step_00000002" / "manifest.json").exists()
