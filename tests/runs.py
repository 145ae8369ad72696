"""The tiny digits run in this process, what runs leave behind, and runs as if they had been killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pmf.checkpoint.places import list_checkpoints
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.training.trainer import Trainer
from tests.launch import NETWORKS, ROOT, TINY

TIMES = {"images_per_second"}


METHODS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "digits_imf": (),
    # So that the guidance pass has rows of both kinds.
    "digits_meanflow": ("objective.guidance_scale=1.5", "objective.guidance_mixing=0.5"),
}
"""The config of each method on the digits, and what makes each part of its step do something."""


def tiny_config(output: Path, *overrides: str, config: str = "digits") -> Config:
    network = f"model.name={NETWORKS[config]}"
    given = [*TINY, network, *METHODS[config], f"training.output_dir={output}", *overrides]
    return load_config(ROOT / "configs" / f"{config}.yaml", given)


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """Weights, optimizer and averages at a step, and every logged number but times, are equal to the bit."""
    ours, theirs = (tensors_of(folder / "checkpoints" / f"step_{step:08d}") for folder in (a, b))
    assert ours.keys() == theirs.keys()
    assert {name.partition("/")[0] for name in ours} == {"model", "optimizer", "ema_0.05", "ema_10"}
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics_of(a) == metrics_of(b)


def metrics_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def cut_back_to(run: Path, copy: Path, step: int) -> None:
    """A copy of a run as it was when it was killed some time after ``step``."""
    shutil.copytree(run, copy)
    for checkpoint in list_checkpoints(copy):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    (copy / "latest").write_text(f"checkpoints/step_{step:08d}\n")


def poison(trainer: Trainer) -> None:
    """Make every loss NaN from now on."""
    original = trainer.train_step.objective.adaptive
    trainer.train_step.objective.adaptive = lambda loss: original(loss) * float("nan")
