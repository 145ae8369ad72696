"""The three methods on the digits: python benchmarks/bench_methods.py [--json OUT]

Each config of digits gives its network, with random weights, and its objective. In every round each method runs, in
turn, the exact step and the literal one (forward and backward of one batch of the config's size) and makes a batch of
images in one step and in two; on one thread. Given are medians over the rounds: images per second, and the ratio of the
literal step's time to the exact step's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch

from benchmarks.environment import environment
from benchmarks.reference_improved_mean_flow import improved_mean_flow_step
from benchmarks.reference_mean_flow import mean_flow_step
from benchmarks.reference_step import reference_step
from benchmarks.result_file import ResultFile
from pmf.commands import run_command
from pmf.config.network import network_of
from pmf.config.yaml_file import load_config
from pmf.flow.draws import draw_standard
from pmf.flow.objective import create_objective

CONFIGS = Path(__file__).parents[1] / "configs"
LITERAL: dict[str, Callable[..., Any]] = {
    "digits_meanflow": mean_flow_step,
    "digits_imf": improved_mean_flow_step,
    "digits": reference_step,
}
SAMPLES = 250


class Timed:
    """What is timed of one config: each part by name, a function of the round."""

    def __init__(self, name: str) -> None:
        self.config = load_config(CONFIGS / f"{name}.yaml")
        classes = self.config.data.num_classes
        generator = torch.Generator().manual_seed(0)
        self.network: Any = network_of(self.config, generator=generator)
        with torch.no_grad():  # gates and output layers start at zero
            for parameter in self.network.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        self.objective: Any = create_objective(self.config.objective, num_classes=classes)
        rows = self.config.training.global_batch_size
        shape = (self.config.data.channels, self.config.data.image_size, self.config.data.image_size)
        self.images = torch.rand((rows, *shape), generator=generator) * 2 - 1
        self.labels = torch.randint(classes, (rows,), generator=generator)
        self.noise = torch.randn((SAMPLES, *shape), generator=generator)
        self.classes = torch.arange(SAMPLES) % classes
        self.literal = LITERAL[name]
        self.parts: dict[str, tuple[int, Callable[[int], None]]] = {
            "exact step": (rows, self.exact_step),
            "literal step": (rows, self.literal_step),
            "images, 1 step": (SAMPLES, lambda _: self.generate(1)),
            "images, 2 steps": (SAMPLES, lambda _: self.generate(2)),
        }

    def exact_step(self, number: int) -> None:
        """Forward and backward of the draws of this round."""
        draws = self.objective.shape(draw_standard(self.images, torch.Generator().manual_seed(number)))
        self.objective.loss(self.network, self.images, self.labels, draws).total.backward()

    def literal_step(self, number: int) -> None:
        """The same of the literal step."""
        standard = draw_standard(self.images, torch.Generator().manual_seed(number))
        options, null_label = self.config.objective, self.config.data.num_classes
        self.literal(self.network, options, null_label, self.images, self.labels, standard).loss.backward()

    def generate(self, num_steps: int) -> None:
        """A batch of images, as the config samples them."""
        sampling = self.config.sampling
        self.objective.generate(
            self.network,
            self.noise,
            self.classes,
            omega=sampling.omega,
            interval=sampling.interval,
            num_steps=num_steps,
        )


def measure(rounds: int, record: ResultFile) -> dict[str, dict[str, float]]:
    """Medians by config and part, after a round to warm up; recorded when all is measured."""
    timed = {name: Timed(name) for name in LITERAL}
    seconds: dict[str, dict[str, list[float]]] = {name: {part: [] for part in t.parts} for name, t in timed.items()}
    for number in range(rounds + 1):
        for name, config in timed.items():
            for part, (_, run) in config.parts.items():
                started = time.perf_counter()
                run(number)
                if number:
                    seconds[name][part].append(time.perf_counter() - started)
    found = {}
    for name, config in timed.items():
        own = seconds[name]
        found[name] = {part: count / statistics.median(own[part]) for part, (count, _) in config.parts.items()}
        ratios = [literal / exact for literal, exact in zip(own["literal step"], own["exact step"], strict=True)]
        found[name]["literal / exact"] = statistics.median(ratios)
    record.add(seconds=seconds, medians=found)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = ResultFile(arguments.json, environment("cpu"))
    found = measure(arguments.rounds, record)
    print(f"{'images/s':20s}" + "".join(f"{name:>18s}" for name in found))
    for part in next(iter(found.values())):
        print(f"{part:20s}" + "".join(f"{medians[part]:18.4g}" for medians in found.values()))


if __name__ == "__main__":
    run_command(main)
