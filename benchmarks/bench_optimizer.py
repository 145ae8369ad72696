"""Milliseconds of one optimizer step: Muon with its matrices stacked, one by one, and as shipped, against AdamW.

Times are interleaved (one step of each in turn) and the median is reported. ``as shipped`` stacks up to the device's
limit in pmf/distributed/owners.py; this is where that limit comes from. ``--step`` adds what the update (optimizer and
averages) takes within whole steps of the trainer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch import nn

from benchmarks.contact.setting import Setting
from benchmarks.environment import environment, synchronize
from benchmarks.result_file import ResultFile
from benchmarks.update_share import measure_shares
from pmf.commands import run_command
from pmf.distributed import owners as sharding
from pmf.optim import symmetric_product
from pmf.optim.optimizer import RuleOptimizer

Shapes = dict[tuple[int, ...], int]


def transformer_shapes(*, width: int, mlp: int, head_width: int, blocks: int, patch: int, classes: int) -> Shapes:
    """How many parameters of each shape a two-headed pixel transformer has; ``patch`` is that of 3-channel images."""
    rows: list[tuple[int, tuple[int, ...]]] = [
        (4 * blocks, (width, width)),
        (2 * blocks, (mlp, width)),
        (blocks, (width, mlp)),
        (4 * blocks, (width,)),
        (2 * blocks, (head_width,)),
        *[(4, shape) for shape in ((width, 256), (width, width), (width,), (width,))],
        *[(2, shape) for shape in ((3 * patch * patch, width), (3 * patch * patch,), (width,))],
        *[(1, shape) for shape in ((128, 3, patch, patch), (128,), (width, 128, 1, 1), (width,))],
        # positions, condition tokens, and the label table as the official code has it: in 3-D, so no matrix for Muon
        *[(1, (1, count, width)) for count in (276, 20, classes)],
    ]
    counts: Shapes = {}
    for count, shape in rows:
        counts[shape] = counts.get(shape, 0) + count
    return counts


MODELS = {"tiny": "pmf_tiny_2", "b16": "pmf_b_16"}
"""Those of the presets, for whole steps."""
PRESETS = {
    "tiny": transformer_shapes(width=64, mlp=170, head_width=16, blocks=6, patch=2, classes=11),
    "b16": transformer_shapes(width=768, mlp=2048, head_width=64, blocks=24, patch=16, classes=1001),
}


def create_parameters(shapes: Shapes, device: str) -> list[nn.Parameter]:
    """Random weights with random gradients."""
    generator = torch.Generator(device).manual_seed(0)
    parameters = []
    for shape, count in shapes.items():
        for _ in range(count):
            parameter = nn.Parameter(torch.randn(shape, generator=generator, device=device))
            parameter.grad = torch.randn(shape, generator=generator, device=device)
            parameters.append(parameter)
    return parameters


def create_muon_step(
    shapes: Shapes, device: str, stack_elements: int, dtype: torch.dtype | None = None
) -> Callable[[], object]:
    """One step with stacks of at most so many elements."""
    parameters = create_parameters(shapes, device)
    groups = [
        {"kind": "muon", "params": [p for p in parameters if p.ndim == 2]},
        {"kind": "nadamw", "params": [p for p in parameters if p.ndim != 2]},
    ]
    shipped = sharding.STACK_ELEMENTS[device]
    sharding.STACK_ELEMENTS[device] = stack_elements
    optimizer = RuleOptimizer(groups, newton_schulz_dtype=dtype)
    sharding.STACK_ELEMENTS[device] = shipped
    return optimizer.step


def without_kernel(step: Callable[[], object]) -> Callable[[], object]:
    """The step with symmetric products by torch, whatever their size; this is where SMALLEST comes from."""

    def call() -> None:
        shipped, symmetric_product.SMALLEST = symmetric_product.SMALLEST, 2**30
        step()
        symmetric_product.SMALLEST = shipped

    return call


def median_milliseconds(
    steps: dict[str, Callable[[], object]], repeats: int, device: str, record: ResultFile
) -> dict[str, float]:
    """Each candidate once to warm up, then ``repeats`` rounds of all of them; recorded after each round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(repeats + 1):
        for name, step in steps.items():
            synchronize(device)
            begin = time.perf_counter()
            step()
            synchronize(device)
            if round_number:
                times[name].append(1e3 * (time.perf_counter() - begin))
        if round_number:
            medians = {name: statistics.median(values) for name, values in times.items()}
            record.add(rounds=round_number, milliseconds=medians)
    return medians


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--step", action="store_true", help="also the update's share of whole steps of the trainer")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.step and arguments.device != ("cuda" if torch.cuda.is_available() else "cpu"):
        parser.error("--step: the trainer takes the GPU if there is one, and --device names another")
    shapes, device = PRESETS[arguments.preset], arguments.device
    settings = {"preset": arguments.preset, "device": device, "repeats": arguments.repeats}
    record = ResultFile(arguments.json, {**environment(device), **settings})
    shipped = sharding.STACK_ELEMENTS[device]
    adamw = torch.optim.AdamW(create_parameters(shapes, device), foreach=True)
    steps: dict[str, Callable[[], object]] = {
        "torch AdamW": adamw.step,
        "Muon one by one": create_muon_step(shapes, device, 1),
        "Muon stacked": create_muon_step(shapes, device, 2**26),
        "Muon as shipped": create_muon_step(shapes, device, shipped),
    }
    if device == "cuda":
        half = create_muon_step(shapes, device, shipped, torch.bfloat16)
        steps["Muon as shipped, bfloat16 products"] = half
        steps["the same, all products by torch"] = without_kernel(half)
    milliseconds = median_milliseconds(steps, arguments.repeats, device, record)
    print(f"{'':>36} {'ms':>10} {'to AdamW':>9} {'to one by one':>14}")
    for name, value in milliseconds.items():
        to_adamw, to_looped = value / milliseconds["torch AdamW"], value / milliseconds["Muon one by one"]
        print(f"{name:>36} {value:>10.2f} {to_adamw:>9.2f} {to_looped:>14.2f}")
    if arguments.step:
        with tempfile.TemporaryDirectory() as scratch:
            setting = Setting(device=device, model=MODELS[arguments.preset], scratch=Path(scratch))
            shares = measure_shares(setting, arguments.repeats, record)
        print(f"{'in a whole step':>36} {'update ms':>10} {'step ms':>9} {'share':>14}")
        for name, of_run in shares.items():
            print(f"{name:>36} {of_run['update_ms']:>10.2f} {of_run['step_ms']:>9.1f} {of_run['share']:>14.2%}")


if __name__ == "__main__":
    run_command(main)
