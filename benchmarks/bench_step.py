"""Our training step against the literal one: python benchmarks/bench_step.py --preset cpu [--json OUT]

Both take draws of one distribution through the same network, dealt as in a run (pmf/flow/dealing.py). Times are of
forward and backward of one micro-batch, variants in turn within one run, after a warm-up over every number of rows that
is timed. The literal step keeps so much for its backward pass that it gets 16 images at most; a speed-up is the median
over the rounds of literal / variant in seconds an image, so that a machine that is slow for a while slows both. Peak
memory is of a process of its own for each variant. FLOPs are counted by torch, attention written out. Gradients are
compared in float64 on a small network. The JSON is rewritten after each measurement; one that fails is recorded, the
others follow, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.environment import environment, synchronize
from benchmarks.result_file import ResultFile
from benchmarks.step_variants import GLOBAL_BATCH, NUM_CLASSES, VARIANTS, Step, build_network, gradient_error, images_of
from pmf.commands import run_command
from pmf.costs.arithmetic import peak_flops, step_flops
from pmf.flow.objective import create_objective
from pmf.flow.options import PixelMeanFlowOptions
from pmf.net.sizes import SIZES
from pmf.optim.ema import WeightAverages
from pmf.optim.groups import create_optimizer
from pmf.optim.options import EmaConfig, OptimizerConfig


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
    "cpu": Preset(network=CPU_NETWORK, batch_size=8, repeats=5, threads=1),
    "b16": Preset(network={"name": "pmf_b_16", "image_size": 256}, batch_size=64, repeats=10),
    "l16": Preset(network={"name": "pmf_l_16", "image_size": 256}, batch_size=64, repeats=10),
}


def build_step(variant: str, preset: Preset, device: str, batch_size: int) -> Step:
    """The variant, its network compiled if that is what it is."""
    network = build_network(preset.network, device)
    if variant == "compiled":
        network.compile_blocks()
    return Step(variant, network, batch_size, device, autocast=device == "cuda")


def time_variants(preset: Preset, variants: list[str], device: str, batch_size: int, record: ResultFile) -> None:
    """Seconds of each variant, in turn; a variant that fails is left out from then on.

    Before that each has taken a step for every number of rows that comes, and one more where compilation happens.
    """
    steps: dict[str, Step] = {}
    times: dict[str, list[float]] = {}
    seeds = range(preset.repeats)

    def attempt(variant: str, call: Callable[[], None]) -> None:
        record.attempt(variant, call)
        if variant in record.failures:
            steps.pop(variant, None)

    def warm_up(variant: str) -> None:
        step = steps[variant] = build_step(variant, preset, device, images_of(variant, batch_size))
        one_of_each = {step.guided_rows(seed): seed for seed in seeds}
        warm = [0] if variant == "literal" else [*[seeds[0]] * (variant == "compiled"), *one_of_each.values()]
        for seed in warm:
            step.run(seed)

    def take_time(variant: str, step: Step, seed: int) -> None:
        times.setdefault(variant, []).append(step.run(seed))

    for variant in variants:
        attempt(variant, partial(warm_up, variant))
    for seed in seeds:
        for variant, step in list(steps.items()):
            attempt(variant, partial(take_time, variant, step, seed))
        record.add(seconds=times)


def speed_up(times: dict[str, list[float]], variant: str, batch_size: int) -> float | None:
    """Times the literal step's throughput: the median over the rounds; None where one of the two was not timed."""
    if not {"literal", variant} <= times.keys():
        return None
    images = images_of(variant, batch_size) / images_of("literal", batch_size)
    return statistics.median(images * a / b for a, b in zip(times["literal"], times[variant], strict=False))


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
    objective = create_objective(PixelMeanFlowOptions(), num_classes=NUM_CLASSES)
    side = preset.network["image_size"]
    needed = step_flops(build_network(preset.network, "meta"), objective, (3, side, side)).total
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

    head = {**environment(device), "network": network, "batch_size": batch_size}
    literal_images = images_of("literal", batch_size) if "literal" in arguments.variants else None
    record = ResultFile(arguments.json, {**head, "literal_batch_size": literal_images})
    time_variants(preset, arguments.variants, device, batch_size, record)
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()  # the processes below need the memory
    measure_more(preset, arguments.variants, device, batch_size, record)
    print_table(record.content, batch_size)
    if record.failures:
        sys.exit(1)


def measure_more(preset: Preset, variants: list[str], device: str, batch_size: int, record: ResultFile) -> None:
    """What follows from the times, then memory, gradients and operations: whatever of it fails, the rest is kept."""
    times: dict[str, list[float]] = record.content.get("seconds", {})
    rates = {v: images_of(v, batch_size) / statistics.median(values) for v, values in times.items()}
    record.add(images_per_second=rates, throughput_ratio=speed_up(times, "dual", batch_size))
    record.add(compiled_throughput_ratio=speed_up(times, "compiled", batch_size))
    record.add(mfu=record.attempt("mfu", lambda: model_flops_utilisation(preset, rates, device)))
    optimizer = record.attempt("optimizer", lambda: optimizer_seconds(preset, device))
    record.add(optimizer_seconds=optimizer)
    if optimizer is not None and "dual" in rates:
        record.add(optimizer_share=optimizer / (optimizer + GLOBAL_BATCH / rates["dual"]))
    memory: dict[str, float] = {}
    for variant in variants:
        arguments = (variant, preset, device, images_of(variant, batch_size))
        found = record.attempt(f"{variant}, memory", partial(in_new_process, peak_memory, *arguments))
        if found is not None:
            memory[variant] = found
        record.add(memory_gib=memory)
    if {"dual", "literal"} <= memory.keys():
        images = images_of("dual", batch_size) / images_of("literal", batch_size)
        record.add(memory_ratio=memory["dual"] / memory["literal"] / images)
    for variant in variants:
        if variant != "literal":
            error = record.attempt(f"{variant}, gradients", partial(gradient_error, variant))
            errors = [error, record.content.get("max_relative_gradient_error")]
            record.add(max_relative_gradient_error=max((e for e in errors if e is not None), default=None))
    if device == "cpu" and {"dual", "literal"} <= set(variants):
        ratio = record.attempt("flop_ratio", lambda: count_flops("literal", preset) / count_flops("dual", preset))
        record.add(flop_ratio=ratio)


def print_table(content: dict[str, Any], batch_size: int) -> None:
    """A row for each variant that was timed, then single figures."""
    times, memory = content.get("seconds", {}), content["memory_gib"]
    print(f"{'':10s}{'images':>8s}{'s / step':>10s}{'images/s':>10s}{'speed-up':>10s}{'GiB':>8s}")
    for variant, values in times.items():
        rate, gain = content["images_per_second"][variant], speed_up(times, variant, batch_size) or float("nan")
        row = (
            f"{variant:10s}{images_of(variant, batch_size):8d}{statistics.median(values):10.3f}{rate:10.2f}{gain:10.2f}"
        )
        print(f"{row}{memory.get(variant, float('nan')):8.2f}")
    for key in ("memory_ratio", "flop_ratio", "max_relative_gradient_error"):
        print(f"{key}: {content.get(key)}")
    for name, reason in content.get("failures", {}).items():
        print(f"failed: {name}: {reason}")


if __name__ == "__main__":
    run_command(main)
