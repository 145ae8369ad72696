"""Bytes of one micro-batch, forward and backward: of a real one, or of one that is simulated.

The real step runs on torch's fake tensors, which have shapes and no contents. So whatever network and objective are
changed to is counted as it is: rows that passes skip, autocast's copies, tangents, checkpointing, perceptual networks.
Compiled blocks are counted as if they were not compiled, and need less.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pmf.config.sections import Config
from pmf.costs.live import LiveBytes
from pmf.costs.simulated_gpu import simulated_gpu
from pmf.data.options import network_shape
from pmf.distributed.batching import accumulation_steps
from pmf.distributed.world import ALONE
from pmf.flow.objective import MicroBatch, Objective
from pmf.randomness import Stream, torch_generator

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class MicroBatchBytes:
    """Bytes beyond those of weights and gradients.

    Attributes:
        saved: at the end of the forward pass: what the backward pass will read, and the micro-batch itself.
        peak: the most at any time, forward or backward.
    """

    saved: int
    peak: int


def measure(
    network: nn.Module, objective: Objective[Any, Any], make: Callable[[], MicroBatch[Any]], precision: str
) -> MicroBatchBytes:
    """Run one micro-batch and count. Gradients are added to those that the parameters have: give them some.

    Args:
        make: gives the micro-batch, in tensors that are new: they count too. Its images are (B, C, H, W) in the
            network's space, its labels (B,) int64.
        precision: ``training.mixed_precision``.
    """
    enabled = precision in AUTOCAST
    simulated = simulated_gpu() if next(network.parameters()).device.type == "cuda" else contextlib.nullcontext()
    with simulated, LiveBytes() as live:
        batch = make()
        with torch.autocast(batch.images.device.type, AUTOCAST.get(precision), enabled=enabled):
            objective.begin_step(network, [make], ALONE)
            total = objective.loss(network, batch.images, batch.labels, batch.draws).total
        saved = live.current
        total.backward()
    return MicroBatchBytes(saved=saved, peak=live.peak)


def simulate(
    mode: FakeTensorMode,
    network: nn.Module,
    objective: Objective[Any, Any],
    config: Config,
    micro_batch_size: int,
    processes: int,
) -> MicroBatchBytes:
    """The same for the first micro-batch of a run, on fake tensors; it takes seconds whatever the size.

    Args:
        network: fake, of ``mode``, with gradients.
        objective: its perceptual networks are fake too.

    Raises:
        CrossFieldError: micro_batch_size x processes does not divide the global batch.
    """
    training = config.training
    accumulation = accumulation_steps(training.global_batch_size, micro_batch_size, processes)
    (scalars,) = objective.draw_rows(
        training.global_batch_size,
        num_micro_batches=processes * accumulation,
        wanted=[0],
        generator=torch_generator(Stream.DRAWS, training.seed, 0),
    )
    # How many rows each pass has is decided by real numbers; noise and images need none.
    images = torch.empty(micro_batch_size, *network_shape(config.data), device="meta")
    generator = torch_generator(Stream.TRAINING_NOISE, training.seed, 0, 0)
    labels = torch.zeros(micro_batch_size, dtype=torch.int64, device="meta")
    batch = MicroBatch(images=images, labels=labels, draws=objective.draw(images, generator, scalars))
    device = next(network.parameters()).device

    def make() -> MicroBatch[Any]:
        made: MicroBatch[Any] = _placed(batch, device)
        return made

    with mode:
        return measure(network, objective, make, training.mixed_precision)


def _placed(value: Any, device: torch.device) -> Any:
    """Fake tensors in place of those in a record, and in the records, lists and dicts that it is made of."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **_placed(fields, device))
    if isinstance(value, dict):
        return {name: _placed(part, device) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_placed(part, device) for part in value)
    return value
