"""From a config and a machine to a micro-batch size in the config: what auto_batch.py does."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pmf.auto_batch.candidate import available_memory
from pmf.auto_batch.launch import run_on_every_rank
from pmf.auto_batch.record import Record, write_back
from pmf.auto_batch.request import GLOBAL, MICRO, Request
from pmf.auto_batch.search import HEADROOM, Measurement, Trial, best_size, largest_that_fits, table, verified_size
from pmf.config.edit import read_exactly, with_numbers
from pmf.config.sections import Config
from pmf.config.yaml_file import save_config
from pmf.costs.memory import MemoryEstimator
from pmf.distributed.batching import accumulation_steps, divisors
from pmf.distributed.world import World, join_world
from pmf.errors import CrossFieldError, UserError
from pmf.optim.options import ema_names

CANDIDATE = (sys.executable, "-m", "pmf.auto_batch.candidate")
TRIAL_STEPS, VERIFYING_STEPS = 4, 7


def find_and_write(request: Request, candidate: Sequence[str] = CANDIDATE) -> None:
    """Find the micro-batch size for these processes on these devices and write it; called by all ranks.

    Args:
        candidate: the command that tries one size; see :mod:`pmf.auto_batch.candidate`.

    Raises:
        UserError: not even one image fits, a trial fails, or the batch sizes do not divide.
    """
    world = join_world(on_host=True)

    def say(text: str) -> None:
        if world.is_main:
            print(text, flush=True)

    config = request.load()
    try:
        sizes = divisors(
            accumulation_steps(config.training.global_batch_size, config.training.micro_batch_size, world.size)
        )  # of batches of one image
    except CrossFieldError as error:
        raise UserError(str(error)) from None
    text = read_exactly(request.config_path)
    estimate_only = request.device_memory is not None and not torch.cuda.is_available()
    say(f"{request.config_path}: {config.training.global_batch_size} images a step on {world.size} process(es)")
    estimates = _estimates(config, world, sizes, request.device_memory, say)
    if estimate_only:
        fitting = [row.size for row in estimates.values() if row.fits]
        chosen, rows = (max(fitting) if fitting else None), estimates
    else:
        chosen, rows = _measure(config, world, sizes, estimates, request.device_memory, candidate)
    say(table(rows))
    if chosen is None:
        raise UserError(f"{request.config_path}: one image per process does not fit; {advice(config, world.size)}")
    accumulation = config.training.global_batch_size // world.size // chosen
    say(
        f"{MICRO}: {chosen} ({chosen} x {accumulation} accumulation x {world.size} process(es) = "
        f"{config.training.global_batch_size})"
    )
    if estimate_only:
        say("This is an estimate: nothing ran, and no speed is known. Start the command again on the device itself.")
    numbers = {MICRO: chosen}
    if any(override.startswith(f"{GLOBAL}=") for override in request.overrides):
        numbers = {GLOBAL: config.training.global_batch_size, **numbers}
    edited = with_numbers(text, numbers, str(request.config_path))
    say(_difference(text, edited, request.config_path))
    if world.is_main and not request.dry_run:
        record = Record(estimated=estimate_only, processes=world.size, device_memory=request.device_memory, rows=rows)
        for line in write_back(request.config_path, text, edited, record):
            say(line)
    world.barrier()


def advice(config: Config, processes: int) -> str:
    """Options that would save memory, those that cost least first."""
    training = config.training
    ideas = []
    if training.compile is False or (training.compile == "auto" and not torch.cuda.is_available()):
        ideas.append("training.compile=true")
    if not training.activation_checkpointing:
        ideas.append("training.activation_checkpointing=true")
    ideas.append("training.parallel=fsdp" if processes > 1 else "more processes with training.parallel=fsdp")
    if len(ema_names(config.ema)) > 1:
        ideas.append("fewer averages in ema.half_lives_kimg")
    return "try, in this order: " + ", ".join(ideas)


def _estimates(
    config: Config, world: World, sizes: Sequence[int], memory: int | None, say: Callable[[str], None]
) -> dict[int, Measurement]:
    """An estimate for each size.

    Only the main rank computes them, because it takes a while; it sends them to the others.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        total = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0"))).total_memory
        limit = min(total, memory or total)
    else:
        limit = memory or available_memory()
    limit = min(world.gather(limit))
    say(f"estimating for {limit / 2**30:.1f} GiB, {HEADROOM:.0%} of it kept free ...")
    peaks = None
    if world.is_main:
        estimator = MemoryEstimator(config, device="cuda" if on_gpu or memory else "cpu")
        peaks = [estimate.peak for estimate in estimator(sizes, world.size)]
    peaks = world.gather(peaks)[0]
    return {
        size: Measurement(size=size, peak=peak, images_per_second=None, fits=peak <= (1 - HEADROOM) * limit)
        for size, peak in zip(sizes, peaks, strict=True)
    }


def _measure(
    config: Config,
    world: World,
    sizes: Sequence[int],
    estimates: dict[int, Measurement],
    memory: int | None,
    candidate: Sequence[str],
) -> tuple[int | None, dict[int, Measurement]]:
    """The size that wins, if any fits, and all that were tried."""
    rows: dict[int, Measurement] = {}
    estimated = [size for size in sizes if estimates[size].fits] or [sizes[0]]
    if not torch.cuda.is_available():
        sizes = estimated  # a machine that runs out of main memory may end anyone's process
    with tempfile.TemporaryDirectory() as folder:

        def attempt(size: int, steps: int = TRIAL_STEPS) -> Measurement:
            training = config.training.model_copy(update={"micro_batch_size": size})
            path = Path(folder) / "config.yaml"
            save_config(config.model_copy(update={"training": training}), path)
            results = run_on_every_rank(world, candidate, Path(folder), arguments=(str(path), str(steps)))
            if any(result.out_of_memory for result in results):
                return Measurement(size=size, peak=None, images_per_second=None, fits=False)
            return Measurement(
                size=size,
                peak=max(result.peak for result in results),
                images_per_second=training.global_batch_size / max(result.seconds for result in results),
                fits=all(
                    result.peak <= (1 - HEADROOM) * min(result.limit, memory or result.limit) for result in results
                ),
            )

        def once(size: int) -> Measurement:
            if size not in rows:
                rows[size] = attempt(size)
            return rows[size]

        def again(size: int) -> Measurement:
            rows[size] = attempt(size, VERIFYING_STEPS)
            return rows[size]

        return _choose(sizes, estimated[-1], once, again), rows


def _choose(sizes: Sequence[int], first: int, once: Trial, again: Trial) -> int | None:
    largest = largest_that_fits(sizes, first, once)
    return None if largest is None else verified_size(sizes, best_size(sizes, largest, once), again)


def _difference(before: str, after: str, path: Path) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), lineterm="", n=1)
    return "\n".join(lines) or f"{path} says so already"
