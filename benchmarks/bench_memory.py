"""Is the estimate of saved activations right? python benchmarks/bench_memory.py [--json OUT]

The forward pass of a real micro-batch on the CPU, against the same one simulated by pmf.costs on tensors without
contents. What is measured knows nothing of the estimator: autograd reports every tensor that it keeps for the backward
pass, and each storage counts once.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.result_file import ResultFile
from pmf.commands import run_command
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.costs.memory import MemoryEstimator
from pmf.costs.simulated_step import AUTOCAST
from pmf.flow.objective import MicroBatch, Objective, create_objective
from pmf.net.sizes import create_network
from pmf.randomness import Stream, torch_generator

CONFIGS = Path(__file__).parents[1] / "configs"
MIB = 2**20
# Config and images: three sizes of network.
CASES = {"digits": 16, "pmf_b_16": 4, "pmf_l_16": 2}
# bfloat16 products of the larger ones take many minutes on CPUs without instructions for them.
PRECISIONS = {"digits": ("no", "bf16"), "pmf_b_16": ("no",), "pmf_l_16": ("no",)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Bytes that the graph of a micro-batch keeps."""

    measured: int
    estimated: int

    @property
    def error(self) -> float:
        """Of the estimate, relative."""
        return self.estimated / self.measured - 1


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """The first micro-batch of a run, on random images and without perceptual losses."""

    network: nn.Module
    objective: Objective[Any, Any]
    batch: MicroBatch[Any]


def first_micro_batch(config: Config, size: int) -> FirstStep:
    """``size`` images on the CPU; parameters have gradients."""
    data, training = config.data, config.training
    network = create_network(
        config.model.name, image_size=data.image_size, num_classes=data.num_classes, channels=data.channels
    )
    if training.activation_checkpointing:
        network.checkpoint_blocks()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    objective = create_objective(config.objective, num_classes=data.num_classes)
    generator = torch_generator(Stream.DRAWS, training.seed, 0)
    count = training.global_batch_size // size
    (scalars,) = objective.draw_rows(training.global_batch_size, count, [0], generator)
    images = torch.rand(size, data.channels, data.image_size, data.image_size) * 2 - 1
    labels = torch.randint(data.num_classes, (size,))
    batch = MicroBatch(images=images, labels=labels, draws=objective.draw(images, generator, scalars))
    return FirstStep(network=network, objective=objective, batch=batch)


def compare(config: Config, size: int) -> Comparison:
    """Run the forward pass of one micro-batch of ``size`` images, and simulate it."""
    real, precision = first_micro_batch(config, size), config.training.mixed_precision
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", AUTOCAST.get(precision), enabled=precision in AUTOCAST),
    ):
        terms = real.objective.loss(real.network, **vars(real.batch))
    assert terms.total.requires_grad  # the graph is alive, so no two storages have had one address
    for tensor in (*real.network.parameters(), *real.network.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    estimate = MemoryEstimator(config, device="cpu").simulate(size)
    return Comparison(measured=sum(kept.values()), estimated=estimate.saved)


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    record = ResultFile(arguments.json, environment("cpu"))
    rows: list[dict[str, Any]] = []
    print(f"{'model':10s}{'images':>7s}{'precision':>10s}{'checkpointed':>13s}{'measured MiB':>13s}{'error':>8s}")
    for name in arguments.cases:
        for precision in PRECISIONS[name]:
            for checkpointing in ("false", "true"):
                overrides = [
                    f"training.mixed_precision={precision}",
                    f"training.activation_checkpointing={checkpointing}",
                    "perceptual.lpips=false",
                    "perceptual.convnext=false",
                    "data.path=.",
                ]
                config = load_config(CONFIGS / f"{name}.yaml", overrides)
                found = compare(config, CASES[name])
                row = {"model": config.model.name, "images": CASES[name], "precision": precision}
                rows.append({**row, "checkpointed": checkpointing == "true", **asdict(found), "error": found.error})
                worst = max(abs(row["error"]) for row in rows)
                record.add(largest_error=worst, rows=rows)
                print(
                    f"{config.model.name:10s}{CASES[name]:7d}{precision:>10s}{checkpointing:>13s}"
                    f"{found.measured / MIB:13.1f}{found.error:8.2%}",
                    flush=True,
                )
    print(f"largest error: {worst:.2%}")


if __name__ == "__main__":
    run_command(main)
