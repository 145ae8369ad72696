"""The way of docs/one_gpu.md: from a folder of JPEGs to samples and FID, and the recipe's memory by the estimate."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pmf.auto_batch.search import HEADROOM
from pmf.config.yaml_file import load_config
from pmf.costs.memory import MemoryEstimator
from tests.launch import ROOT, run_command

RECIPE = str(ROOT / "configs" / "one_gpu_64.yaml")
# What a CPU does in seconds: the recipe with a small network, few images and two steps.
CHEAP = (
    "model.name=pmf_tiny_16",
    "data.num_workers=0",
    "training.global_batch_size=8",
    "training.micro_batch_size=4",
    "training.max_steps=2",
    "training.mixed_precision=no",
    "training.num_threads=1",
    "training.log_every=1",
)
SMALL = ("--extractor", "tests.evaluation.networks:create")


def call(script: str, *arguments: str | Path) -> str:
    result = run_command(script, *map(str, arguments))
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize(("folder", "num_classes"), [(".", 4), ("class_0", 1)], ids=["class folders", "one folder"])
def test_a_folder_of_jpegs_becomes_samples_and_a_fid(
    folder: str, num_classes: int, jpegs: Path, tmp_path: Path
) -> None:
    data = (f"data.path={jpegs / folder}", f"data.num_classes={num_classes}")
    run, samples, statistics = tmp_path / "run", tmp_path / "samples", tmp_path / "mine.npz"
    printed = call("train.py", "--config", RECIPE, *data, *CHEAP, f"training.output_dir={run}")
    assert f"{50 * num_classes} images" in printed
    losses = [json.loads(line)["loss_u"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)  # images lie in [-1, 1], noise deviates by 1
    call("eval.py", "sample", "--checkpoint", run, "--output", samples, "--num-images", "12", "--seed", "1")
    labels = [int(row["label"]) for row in csv.DictReader((samples / "labels.csv").read_text().splitlines())]
    assert labels == [i % num_classes for i in range(12)]
    call("eval.py", "reference", "--config", RECIPE, *data, *SMALL, "--output", statistics)
    result = tmp_path / "fid.json"
    call("eval.py", "fid", "--images", samples, "--reference", statistics, *SMALL, "--output", result)
    record = json.loads(result.read_text())
    assert (record["num_images"], record["image_shape"]) == (12, [3, 64, 64])
    assert record["reference"]["num_images"] == 50 * num_classes and record["fid"] > 0


def test_the_recipe_fits_16_gib_by_the_estimate() -> None:
    config = load_config(RECIPE)
    micro_batch_size = config.training.micro_batch_size
    assert micro_batch_size is not None
    (estimate,) = MemoryEstimator(config, device="cuda")([micro_batch_size])
    assert estimate.peak < (1 - HEADROOM) * 16 * 2**30
    # As in the page's table. Versions of torch hold some tensors a little longer than others.
    assert estimate.peak / 2**30 == pytest.approx(7.34, rel=0.02)
