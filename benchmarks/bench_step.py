"""Our training step against the literal one: python benchmarks/bench_step.py --preset cpu [--json OUT]

Both take the same draws through the same network. Times are forward and backward of one micro-batch, variants in turn
within one run, compared as ratios of medians. Peak memory is of a process of its own for each variant. FLOPs are
counted by torch, attention written out. Gradients are compared in float64 on a small network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.environment import environment, synchronize
from benchmarks.reference_step import reference_step
from pmf.config import EmaConfig, ObjectiveConfig, OptimizerConfig
from pmf.flops import expected_shares, peak_flops, step_flops
from pmf.flow.draws import StandardDraws, draw_standard, shape_draws
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import SIZES, create_network
from pmf.optim.ema import WeightAverages
from pmf.optim.groups import create_optimizer

NUM_CLASSES = 1000
VARIANTS = ("literal", "jvp", "dual", "compiled")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is timed."""

    network: dict[str, Any]
    batch_size: int
    repeats: int
    threads: int | None = None


# A third of B/16 in width, the same 276 tokens; one thread, so that nothing else on the machine decides the ratio.
CPU_NETWORK = {"image_size": 64, "patch_size": 4, "width": 384, "depth": 12, "head_depth": 6, "num_heads": 6}
PRESETS = {
    "cpu": Preset(network=CPU_NETWORK, batch_size=8, repeats=3, threads=1),
    "b16": Preset(network={"name": "pmf_b_16", "image_size": 256}, batch_size=64, repeats=10),
    "l16": Preset(network={"name": "pmf_l_16", "image_size": 256}, batch_size=64, repeats=10),
}


class Step:
    """One variant of the step over fresh draws each time."""

    def __init__(self, variant: str, network: PixelTransformer, batch_size: int, device: str, autocast: bool) -> None:
        self.variant = variant
        self.network = network
        self.autocast = autocast
        self.settings = ObjectiveConfig(derivative="jvp" if variant == "jvp" else "dual")
        self.objective = PixelMeanFlow(self.settings, num_classes=NUM_CLASSES)
        generator = torch.Generator().manual_seed(0)
        side = CPU_NETWORK["image_size"] if device == "cpu" else 256
        dtype = next(network.parameters()).dtype
        self.images = (torch.rand(batch_size, 3, side, side, generator=generator, dtype=dtype) * 2 - 1).to(device)
        self.labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator).to(device)

    def loss(self, standard: StandardDraws) -> Tensor:
        """Forward only."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.autocast):
            if self.variant == "literal":
                step = reference_step(self.network, self.settings, NUM_CLASSES, self.images, self.labels, standard)
                return step.loss
            draws = shape_draws(standard, self.settings, 1.0)
            return self.objective.loss(self.network, self.images, self.labels, draws).total

    def run(self, seed: int) -> float:
        """Forward and backward; seconds."""
        standard = draw_standard(self.images, torch.Generator().manual_seed(seed))
        synchronize(self.images.device.type)
        started = time.perf_counter()
        self.loss(standard).backward()
        synchronize(self.images.device.type)
        seconds = time.perf_counter() - started
        self.network.zero_grad()
        return seconds


def build_network(settings: dict[str, Any], device: str) -> PixelTransformer:
    """A network by name or by shape, with gates open: at the usual start half of the work multiplies zeros."""
    torch.manual_seed(0)
    if "name" in settings:
        network = create_network(settings["name"], image_size=settings["image_size"], num_classes=NUM_CLASSES)
    else:
        network = PixelTransformer(channels=3, num_classes=NUM_CLASSES, **settings)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(0.1)
            elif "_output.linear" in name:
                parameter.normal_(0, 0.02)
    return network.to(device)


def build_step(variant: str, preset: Preset, device: str, batch_size: int) -> Step:
    """The variant, its network compiled if that is what it is."""
    network = build_network(preset.network, device)
    if variant == "compiled":
        network.compile_blocks()
    return Step(variant, network, batch_size, device, autocast=device == "cuda")


def time_variants(preset: Preset, variants: list[str], device: str, batch_size: int) -> dict[str, list[float]]:
    """Seconds of each variant, taken in turn after two warm-up steps (compilation happens there)."""
    steps = {variant: build_step(variant, preset, device, batch_size) for variant in variants}
    for step in steps.values():
        for seed in range(2):
            step.run(seed)
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for seed in range(2, 2 + preset.repeats):
        for variant, step in steps.items():
            times[variant].append(step.run(seed))
    return times


def peak_memory(variant: str, preset: Preset, device: str, batch_size: int) -> float:
    """Gibibytes that a step needs beyond the network, in this process."""
    step = build_step(variant, preset, device, batch_size)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.run(0)
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    before = resident_memory_peak()
    step.run(0)
    return (resident_memory_peak() - before) / 2**20


def resident_memory_peak() -> int:
    """KiB. From Linux' own account of this process image; getrusage would count the parent's memory at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def count_flops(variant: str, preset: Preset) -> int:
    """Floating point operations of forward and backward, on the CPU and averaged over four draws."""
    step = build_step(variant, preset, "cpu", 8)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for seed in range(4):
            step.run(seed)
    return counter.get_total_flops() // 4


def gradient_error(variant: str) -> float:
    """Largest relative difference of a parameter's gradient to the literal step's, in float64."""
    shape = {"image_size": 64, "patch_size": 16, "width": 48, "depth": 4, "head_depth": 2, "num_heads": 4}
    network = build_network(shape, "cpu").double()
    ours = Step(variant, network, 8, "cpu", autocast=False)
    literal = Step("literal", network, 8, "cpu", autocast=False)
    standard = draw_standard(ours.images, torch.Generator().manual_seed(1))
    parameters = list(network.parameters())
    expected = torch.autograd.grad(literal.loss(standard), parameters)
    if variant == "compiled":
        network.compile_blocks()
    found = torch.autograd.grad(ours.loss(standard), parameters)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(found, expected, strict=True))


def optimizer_seconds(preset: Preset, device: str) -> float:
    """Median of Muon's step (once for a global batch) and the averages' update."""
    network = build_network(preset.network, device)
    optimizer, averages = create_optimizer(network, OptimizerConfig()), WeightAverages(network, EmaConfig())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    times = []
    for step in range(preset.repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        optimizer.step()
        averages.update(network, 1024 * (step + 1), 1024)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def model_flops_utilisation(preset: Preset, rates: dict[str, float], device: str) -> dict[str, float] | None:
    """The share of the GPU's peak that the exact step's necessary operations take; None on a CPU."""
    peak = peak_flops(torch.device(device))
    if peak is None:
        return None
    needed = step_flops(build_network(preset.network, "meta"), expected_shares(ObjectiveConfig(), 0.0)).total
    return {variant: needed * rate / peak for variant, rate in rates.items()}


def in_new_process(function: Callable[..., float], *arguments: Any) -> float:
    """Peak memory is a property of a process's whole life."""
    code = f"import benchmarks.bench_step as b; print(b.{function.__name__}(*{arguments!r}))"
    code = code.replace("Preset(", "b.Preset(")
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    return float(result.stdout.split()[-1])


def main() -> None:
    """Time, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--model", choices=SIZES, help="instead of the preset's network, at 256 pixels")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    network = {"name": arguments.model, "image_size": 256} if arguments.model else preset.network
    preset = Preset(network=network, batch_size=preset.batch_size, repeats=arguments.repeats or preset.repeats,
                    threads=preset.threads)  # fmt: skip
    batch_size = arguments.batch_size or preset.batch_size
    device = "cpu" if arguments.preset == "cpu" or not torch.cuda.is_available() else "cuda"
    if preset.threads:
        torch.set_num_threads(preset.threads)

    report = environment(device)
    memory = {v: in_new_process(peak_memory, v, preset, device, batch_size) for v in arguments.variants}
    times = time_variants(preset, arguments.variants, device, batch_size)
    medians = {variant: statistics.median(values) for variant, values in times.items()}
    rates = {variant: batch_size / median for variant, median in medians.items()}
    optimizer = optimizer_seconds(preset, device)
    base = medians.get("literal", float("nan"))
    result: dict[str, Any] = {
        **report,
        "network": network,
        "batch_size": batch_size,
        "seconds": times,
        "images_per_second": rates,
        "mfu": model_flops_utilisation(preset, rates, device),
        "optimizer_seconds": optimizer,
        "optimizer_share": optimizer / (optimizer + 1024 / rates["dual"]) if "dual" in rates else None,
        "memory_gib": memory,
        "throughput_ratio": base / medians["dual"] if "dual" in medians else None,
        "compiled_throughput_ratio": base / medians["compiled"] if "compiled" in medians else None,
        "memory_ratio": memory["dual"] / memory["literal"] if {"dual", "literal"} <= memory.keys() else None,
        "max_relative_gradient_error": max(gradient_error(v) for v in arguments.variants if v != "literal"),
    }
    if device == "cpu" and {"dual", "literal"} <= set(arguments.variants):
        result["flop_ratio"] = count_flops("literal", preset) / count_flops("dual", preset)
    print(f"{'':10s}{'s / step':>10s}{'images/s':>10s}{'speed-up':>10s}{'GiB':>8s}")
    for variant, median in medians.items():
        speed_up = base / median
        print(f"{variant:10s}{median:10.3f}{batch_size / median:10.2f}{speed_up:10.2f}{memory[variant]:8.2f}")
    for key in ("memory_ratio", "flop_ratio", "max_relative_gradient_error"):
        print(f"{key}: {result.get(key)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
