"""The update's share of whole steps of the trainer on made-up images: launched and, on CUDA, recorded."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.contact.setting import Setting
from benchmarks.contact.steps import NO_PERCEPTUAL, Run, run_config, timed_steps
from benchmarks.environment import synchronize
from benchmarks.result_file import ResultFile
from pmf.training.captured import WARM_UPS


class TimedUpdate:
    """The update of a run's step, timed in its place.

    The host has just waited for the gradients there, so that waiting once more takes little from the step.
    """

    def __init__(self, run: Run) -> None:
        self._device, self._update = run.device.type, run.trainer.train_step.update
        self.seconds: list[float] = []
        run.trainer.train_step.update = self  # type: ignore[assignment]

    def __call__(self, *arguments: Any, **options: Any) -> None:
        """Update, and add the seconds."""
        synchronize(self._device)
        started = time.perf_counter()
        self._update(*arguments, **options)
        synchronize(self._device)
        self.seconds.append(time.perf_counter() - started)


def measure_shares(setting: Setting, rounds: int, record: ResultFile) -> dict[str, dict[str, float]]:
    """Whole steps of each kind in turn, after a warm-up over the same draws; recorded after each round.

    Returns:
        ``launched``, and on CUDA ``recorded`` (a run with ``training.cuda_graph: step``): medians of ``update_ms`` and
        ``step_ms``, and ``share``, the median over the rounds of their ratio.
    """
    runs, updates = {}, {}
    for name in ("launched", "recorded") if setting.on_gpu else ("launched",):
        micro_batch, graph = setting.micro_batch(64), "step" if name == "recorded" else False
        config = run_config(setting, micro_batch, compiled=True, perceptual=NO_PERCEPTUAL, cuda_graph=graph)
        runs[name] = Run(config)
        updates[name] = TimedUpdate(runs[name])
        timed_steps(runs[name], range(max(rounds, WARM_UPS + 1)))
        updates[name].seconds.clear()
    steps: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        for name, run in runs.items():
            steps[name] += timed_steps(run, [number])
            pairs = list(zip(updates[name].seconds, steps[name], strict=True))
            found[name] = {
                "update_ms": 1e3 * statistics.median(updates[name].seconds),
                "step_ms": 1e3 * statistics.median(steps[name]),
                "share": statistics.median(update / step for update, step in pairs),
            }
        record.add(step_rounds=number + 1, update_in_a_step=found)
    return found
