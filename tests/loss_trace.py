"""A short seeded run through the real trainer, in float64 on the CPU, and all the numbers that it leaves.

There is such a run for each method. ``python -m tests.loss_trace`` writes them into ``golden/loss_trace*.json``, or of
the methods that it is given (``python -m tests.loss_trace imf``). Do that after a change that is meant to change the
numbers, and say why in the changelog; a refactor leaves the files alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn

from pmf.config.yaml_file import load_config
from pmf.data import codec
from pmf.flow import draws
from pmf.perceptual.distances import PerceptualDistances
from pmf.tensors import tensors_sha256
from pmf.training.trainer import Trainer
from tests.launch import ROOT

GOLDEN = Path(__file__).parent / "golden"
STEPS = 12
SKIPPED = 5
"""The step, from 1, whose gradient is not finite."""
EVALUATED = 96
"""Images between evaluations: after steps 6 and 12, of which the first has steps behind it."""

# Every part of a step does something: accumulation, clipping (some steps), decay, a schedule, flips, perceptual rows.
OVERRIDES = (
    "objective.time_mean=-0.5",  # some rows have t below 0.05, where the division by it is frozen
    "objective.time_std=1.5",
    "objective.data_proportion=0.5",
    "objective.label_drop=0.2",
    "data.horizontal_flip=true",
    "training.global_batch_size=16",
    "training.micro_batch_size=8",
    f"training.max_steps={STEPS}",
    "training.num_threads=1",
    "training.log_every=1",
    "training.sample_every=0",
    "training.checkpoint_every=6",
    "training.gradient_clip=8.0",
    "optimizer.lr=2e-2",  # gates and output layers start at zero, and soon let everything through
    "optimizer.schedule=warmup_constant",
    "optimizer.warmup_steps=2",
    "optimizer.weight_decay=0.01",
    "ema.half_lives_kimg=[0.005, 10]",  # after 100 images the first is no longer cut to a twentieth of them
    "ema.decays=[0.9]",
    "sampling.final_images=0",
    f"evaluation.every_images={EVALUATED}",
    "evaluation.num_images=40",
)


@dataclass(frozen=True)
class Trace:
    """What is traced of a method: the run of configs/digits.yaml with another network and objective.

    Attributes:
        file: in the golden folder.
        model: its network.
        overrides: its own.
        output: how the names of its last layer's tensors begin.
    """

    file: str
    model: str
    overrides: tuple[str, ...]
    output: str


TRACES = {
    "pmf": Trace(
        "loss_trace.json",
        "pmf_tiny_2",
        ("objective.guidance_max=3.0", "objective.uniform_time_fraction=0.1", "perceptual.max_t=0.8"),
        "u_output",
    ),
    "imf": Trace("loss_trace_imf.json", "imf_tiny_2", ("objective.guidance_max=3.0",), "u_output"),
    "meanflow": Trace(
        "loss_trace_meanflow.json",
        "dit_tiny_2",
        (
            "objective.guidance_scale=1.5",
            "objective.guidance_mixing=0.3",
            "objective.guidance_interval=[0.1, 0.8]",
        ),
        "output",
    ),
}


class StandInDistance(nn.Module):
    """Squared distance of smooth features, in place of a pretrained network; its weights are sines, not drawn."""

    def __init__(self, phase: float, channels: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, stride=2)
        self.second = nn.Conv2d(channels, channels, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_((torch.arange(parameter.numel()) * 1.7 + phase).sin().view_as(parameter) / 3)
        self.double().requires_grad_(False)

    def forward(self, seen: Tensor, true: Tensor) -> Tensor:
        """Two batches (P, 3, H, W) to (P,)."""
        ours, theirs = (self.second(torch.tanh(self.first(images))) for images in (seen, true))
        return (ours - theirs).square().mean((1, 2, 3))


def record(method: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """Do the run of a method in ``folder``.

    Returns:
        ``metrics``: the lines of ``metrics.jsonl`` without times; ``sha256`` of each file of the last checkpoint; and
        ``tensors``: of each tensor there, its norm and its product with cos(0), cos(1), ..., in float64.
    """
    trace, plain = TRACES[method], yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**plain, "model": {"name": trace.model}, "objective": {"name": method}}))
    config = load_config(file, [*OVERRIDES, *trace.overrides, f"training.output_dir={folder}", *overrides])
    torch.set_default_dtype(torch.float64)  # of what the trainer builds
    try:
        trainer = Trainer(config)
    finally:
        torch.set_default_dtype(torch.float32)
    if config.objective.takes_perceptual:
        networks = {"lpips": StandInDistance(0.0), "convnext": StandInDistance(1.0)}
        trainer.train_step.objective.perceptual = PerceptualDistances(networks, {"lpips": 0.4, "convnext": 0.1}, 12)

    encode = codec.to_unit_range

    def to_unit_range(images: Tensor) -> Tensor:
        spoiled = trainer.state.progress.step + 1 == SKIPPED
        return encode(images).double() * (float("nan") if spoiled else 1.0)

    def draw_scalars(rows: int, generator: torch.Generator) -> draws.StandardScalars:
        return draws.draw_scalars(rows, generator, torch.float64)

    # Images are float64 when they meet the noise, and times from the start: in float32 other processors draw others.
    with (
        patch("pmf.data.codec.to_unit_range", to_unit_range),
        patch("pmf.flow.average_velocity.draw_scalars", draw_scalars),
    ):
        trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = sorted((folder / "checkpoints" / f"step_{STEPS:08d}").glob("*.safetensors"))
    contents = {file.stem: load_file(file) for file in files}
    return {
        "metrics": [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines],
        "sha256": {stem: tensors_sha256(tensors) for stem, tensors in contents.items()},
        "tensors": {
            f"{stem}/{name}": _summary(tensor) for stem, tensors in contents.items() for name, tensor in tensors.items()
        },
    }


def machine() -> dict[str, str]:
    """What the last bits depend on: the version of torch, and the code that its products take on this processor."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    first = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    return {
        "torch": torch.__version__.partition("+")[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": " ".join(first.get(name, "") for name in ("model name", "cpu family", "model")),
    }


def _summary(tensor: Tensor) -> list[float]:
    values = tensor.double().flatten()
    return [float(values.norm()), float(values @ torch.arange(len(values), dtype=torch.float64).cos())]


def main() -> None:
    """Write the files."""
    torch.set_num_threads(1)
    for method in sys.argv[1:] or TRACES:
        with tempfile.TemporaryDirectory() as folder:
            recorded = {"machine": machine(), **record(method, Path(folder) / "run")}
        parts = [f" {json.dumps(name)}: {_listed(value)}" for name, value in recorded.items()]
        (GOLDEN / TRACES[method].file).write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _listed(value: dict[str, Any] | list[Any]) -> str:
    """JSON with one entry a line, so that a difference of two versions can be read."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n }"
    return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"


if __name__ == "__main__":
    main()
