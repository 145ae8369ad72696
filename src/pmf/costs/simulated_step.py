"""Bytes of one micro-batch, forward and backward: of a real one, or of one that is only acted out.

The real step runs on torch's fake tensors, which have shapes and no contents. So whatever the step is changed to is
counted as it is: rows that passes skip, autocast's copies, tangents, checkpointing, perceptual networks. Compiled
blocks are counted as if they were not compiled, and need less.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pmf.config.sections import Config
from pmf.costs.live import LiveBytes
from pmf.distributed.batching import accumulation_steps
from pmf.flow.draws import Draws, StandardDraws, shape_draws
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.base import BaseNetwork
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
    network: BaseNetwork, objective: PixelMeanFlow, images: Tensor, labels: Tensor, draws: Draws, precision: str
) -> MicroBatchBytes:
    """Run one micro-batch and count. Gradients are added to those that the parameters have: give them some.

    Args:
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64.
        precision: ``training.mixed_precision``.
    """
    enabled = precision in AUTOCAST
    with LiveBytes() as live:
        images, labels = images.clone(), labels.clone()  # the micro-batch counts too, and so does its noise
        draws = Draws(**{**vars(draws), "e": draws.e.clone()})
        with torch.autocast(images.device.type, AUTOCAST.get(precision), enabled=enabled):
            total = objective.loss(network, images, labels, draws).total
        saved = live.current
        total.backward()
    return MicroBatchBytes(saved=saved, peak=live.peak)


def act_out(
    mode: FakeTensorMode,
    network: BaseNetwork,
    objective: PixelMeanFlow,
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
    data, training = config.data, config.training.model_copy(update={"micro_batch_size": micro_batch_size})
    scalars = objective.draw_rows(
        training.global_batch_size,
        num_micro_batches=processes
        * accumulation_steps(training.global_batch_size, training.micro_batch_size, processes),
        wanted=[0],
        generator=torch_generator(Stream.DRAWS, training.seed, 0),
    )[0]
    # How many rows each pass has is decided by real numbers; the rest of the draws needs none.
    standard = StandardDraws(
        **vars(scalars),
        normal_e=torch.zeros(micro_batch_size, 0, 0, 0),
        uniform_crop=torch.zeros(micro_batch_size, 4),
    )
    draws = shape_draws(standard, objective.settings, config.perceptual.max_t)
    with mode:
        images = torch.empty(micro_batch_size, data.channels, data.image_size, data.image_size)
        values = {field.name: getattr(draws, field.name) for field in fields(draws)}
        fake = {name: mode.from_tensor(value) for name, value in values.items() if isinstance(value, Tensor)}
        labels = torch.zeros(micro_batch_size, dtype=torch.int64)
        draws = Draws(**{**values, **fake, "e": torch.empty_like(images)})
        return measure(network, objective, images, labels, draws, training.mixed_precision)
