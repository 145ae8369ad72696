"""The steps between two lines of ``metrics.jsonl``: what they cost, and what a line says of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pmf.config.sections import TrainingConfig
from pmf.costs.arithmetic import peak_flops
from pmf.distributed.world import World
from pmf.training.course import Course
from pmf.training.step import TrainingStep


class Window:
    """The steps since the last line; those before this start are in its means, but not in its times."""

    def __init__(self, training: TrainingConfig, step: TrainingStep, course: Course, world: World) -> None:
        self._training, self._step, self._course, self._world = training, step, course, world
        self._seconds, self._steps = 0.0, 0

    @contextmanager
    def timed_step(self) -> Iterator[None]:
        """The body is one step."""
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started
        self._steps += 1

    def close(self) -> dict[str, float]:
        """Means over its steps and over ranks, with counts and rates; a new window begins. Called by all ranks."""
        progress = self._step.state.progress
        progress.average_window(self._world)
        steps = max(progress.window_steps, 1)
        images_per_second = self._steps * self._training.global_batch_size / self._seconds
        metrics = {
            "step": progress.step,
            "images": progress.images,
            "epoch": self._course.passes(progress.step),
            **{name: value / steps for name, value in progress.window_sums.items()},
            "lr": self._step.state.optimizer.param_groups[0]["lr"],
            "skipped": progress.skipped,
            "spikes": progress.spikes,
            "images_per_second": images_per_second,
        }
        if self._step.state.scaler is not None:
            metrics["loss_scale"] = self._step.state.scaler.get_scale()
        if self._world.device.type == "cuda":
            metrics["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        peak, flops = peak_flops(self._world.device), self._step.flops
        if peak is not None and flops is not None and self._training.mixed_precision != "no":
            metrics["mfu"] = flops.total * images_per_second / (peak * self._world.size)
        progress.start_window()
        self._seconds, self._steps = 0.0, 0
        return metrics
