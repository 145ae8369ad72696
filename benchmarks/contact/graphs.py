"""Is a run whose micro-batches and updates are recorded as CUDA graphs the same run? Weights, with and without."""

from __future__ import annotations

import gc
from typing import Literal

import torch
from torch import Tensor

from benchmarks.contact.setting import Report, Setting
from benchmarks.contact.steps import NO_PERCEPTUAL, Run, random_perceptual, run_config
from pmf.training import captured

STEPS = 5
"""The first two updates are launched, the others replayed."""


def measure(setting: Setting, report: Report) -> None:
    """Largest relative difference of any weight; without graphs twice, as sums on a GPU may have no fixed order.

    The rates of a recorded update are rounded otherwise. So the operations of such a run are launched too, those of
    micro-batches and updates: replayed, they give the same bits, as far as sums have a fixed order. The perceptual
    networks are there too, so that graphs of several sizes are recorded.
    """
    plain = weights(setting, cuda_graph=False)
    report(steps=STEPS, without_graphs_again=difference(weights(setting, cuda_graph=False), plain))
    found = weights(setting, cuda_graph=True)
    report(with_graphs=difference(found, plain), equal_to_the_bit=all(map(torch.equal, found, plain)))
    found = weights(setting, cuda_graph="step")
    report(update_too=difference(found, plain))
    warm_ups, captured.WARM_UPS = captured.WARM_UPS, 10**9
    try:
        launched = weights(setting, cuda_graph="step")
    finally:
        captured.WARM_UPS = warm_ups
    same = all(map(torch.equal, found, launched))
    report(update_launched=difference(found, launched), update_equal_to_the_bit=same)


def weights(setting: Setting, *, cuda_graph: bool | Literal["step"]) -> list[Tensor]:
    """Of a run from its start, after ``STEPS`` steps."""
    perceptual = random_perceptual(setting) if setting.on_gpu else NO_PERCEPTUAL
    run = Run(run_config(setting, setting.micro_batch(64), compiled=True, perceptual=perceptual, cuda_graph=cuda_graph))
    for number in range(STEPS):
        run.step(number)
    found = [parameter.detach().clone() for parameter in run.trainer.state.network.parameters()]
    del run
    gc.collect()
    return found


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of all weights, in Euclidean norms."""
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).norm() / other.norm().clamp_min(1e-30)) for one, other in pairs)
