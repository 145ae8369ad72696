"""A run of four steps that an earlier version of this library wrote, stopped after two: it goes on as it did then.

In ``tests/fixtures/old_run``: ``run``, the folder as it was after step 2 (``config.yaml`` has no ``objective.name``,
which came later); ``step_4``, weights and an average that the same version reached; and ``samples``, ten images that it
made of that average (``--seed 3 --num-steps 2``).
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pmf.config.yaml_file import load_config
from pmf.net.sizes import PIXEL_TRANSFORMER, SIZES, NetworkSize
from pmf.training.trainer import Trainer
from tests.launch import ROOT
from tests.loss_trace import machine

OLD = ROOT / "tests" / "fixtures" / "old_run"
# On other processors products are summed in another order: 1.4e-7 of a weight was measured between code for AVX2 and
# code for neither AVX2 nor AVX-512.
TOLERANCE = 1e-5

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the numbers are those of a CPU")


def same_machine() -> bool:
    """Whether the last bits are those of the fixture; elsewhere they may be others."""
    return json.loads((OLD / "machine.json").read_text()) == machine()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run folder, where its config expects it."""
    size = NetworkSize(
        PIXEL_TRANSFORMER, width=16, depth=2, head_depth=1, num_heads=2, mlp_width=40, patch_size=4, bottleneck=8
    )
    monkeypatch.setitem(SIZES, "fixture_4", size)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Calls ``eval.py sample`` as the images of the fixture were made; returns them, and what their record says."""

    def call(checkpoint: Path) -> tuple[np.ndarray, dict[str, object]]:
        output = tmp_path / "samples" / checkpoint.stem
        options = ("--num-images", "10", "--num-steps", "2", "--seed", "3")
        monkeypatch.setattr(
            sys, "argv", ["eval.py", "sample", "--checkpoint", str(checkpoint), "--output", str(output), *options]
        )
        importlib.import_module("eval").main()
        return pixels(output), json.loads((output / "sampling.json").read_text())

    return call


def pixels(folder: Path) -> np.ndarray:
    """(10, 8, 8), as integers that can be subtracted."""
    return np.stack([np.asarray(Image.open(file), int) for file in sorted(folder.glob("*.png"))])


def assert_same_images(found: np.ndarray) -> None:
    difference = np.abs(found - pixels(OLD / "samples"))
    assert difference.shape == (10, 8, 8)
    assert difference.max() <= (0 if same_machine() else 1)


def test_it_goes_on_as_it_did_then_and_its_images_are_the_same(run, sample, capsys):
    Trainer(load_config(run / "config.yaml")).train()
    printed = capsys.readouterr().out
    assert "resuming from run/checkpoints/step_00000002 (step 2 of 4)" in printed
    assert "changed since that checkpoint" not in printed
    for name in ("model", "ema_0.9"):
        expected = load_file(OLD / "step_4" / f"{name}.safetensors")
        found = load_file(run / "checkpoints" / "step_00000004" / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        start = load_file(run / "checkpoints" / "step_00000002" / f"{name}.safetensors")
        moved = max(float((expected[key] - start[key]).abs().max()) for key in expected)
        assert moved > 100 * TOLERANCE  # so that the comparison sees whether the steps were those
        worst = max(float((found[key] - expected[key]).abs().max()) for key in expected)
        assert worst <= (0 if same_machine() else TOLERANCE)
    images, record = sample(run)
    assert str(record["weights"]).startswith("step_00000004/ema_0.9.safetensors ")
    assert_same_images(images)


def test_weights_that_it_wrote_are_found_and_sampled(run, sample):
    _, record = sample(run)
    assert record["weights"] == "step_00000002/ema_0.9.safetensors " + sha256_of("ema_0.9.safetensors")[:16]
    images, _ = sample(OLD / "step_4" / "ema_0.9.safetensors")
    assert_same_images(images)


def sha256_of(name: str) -> str:
    return json.loads((OLD / "run" / "checkpoints" / "step_00000002" / "manifest.json").read_text())[name]["sha256"]
