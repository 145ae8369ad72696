"""One optimizer step: micro-batches to gradients to weights, moments and averages."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pmf.config.sections import Config
from pmf.data.codec import to_unit_range
from pmf.data.loader import Batch
from pmf.distributed.shards import average_gradients, whole
from pmf.distributed.world import World
from pmf.errors import AgreedError
from pmf.flow.objective import LossTerms, Objective
from pmf.optim.schedule import learning_rate
from pmf.randomness import Stream, torch_generator
from pmf.training.preemption import StopRequest
from pmf.training.state import TrainingState

MAX_SKIPPED_IN_A_ROW = 20
MIN_LOSS_SCALE = 1.0


class LossModule(nn.Module):
    """Network and objective as one module: the derivative must run inside the module that DDP wraps.

    Taken around a wrapped network it fails, or silently leaves the gradients of each rank to themselves.
    """

    def __init__(self, network: nn.Module, objective: Objective[Any, Any]) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def forward(self, images: Tensor, labels: Tensor, draws: Any) -> LossTerms:
        """See :meth:`Objective.loss`."""
        return self.objective.loss(self.network, images, labels, draws)


@dataclass(frozen=True, kw_only=True)
class OptimizerStep:
    """Called once per step, on every rank, with this rank's micro-batches.

    Attributes:
        accelerator, module, optimizer: Accelerate's, and what it wrapped.
        accumulation: micro-batches per rank and step.
        say: tells people, on the main rank.
        max_steps: of the run, for the learning rate.
    """

    config: Config
    accelerator: Any
    world: World
    module: nn.Module
    optimizer: Any
    objective: Objective[Any, Any]
    state: TrainingState
    stop: StopRequest
    say: Callable[[str], None]
    accumulation: int
    max_steps: int

    def __call__(self, batches: list[Batch]) -> bool:
        """One optimizer step over this rank's micro-batches; a non-finite gradient on any rank skips it on all.

        Returns:
            Whether a signal has asked any rank to stop.
        """
        training, progress, network = self.config.training, self.state.progress, self.state.network
        rate = learning_rate(self.config.optimizer, progress.step, self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scalars = self._draw_rows(batches[0].step)
        logs = [self._backward(batch, micro, scalars[micro]) for micro, batch in enumerate(batches)]
        self.accelerator.unscale_gradients()
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))
        means = {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
        # The only wait for the device in a step.
        *values, norm_value, stopping = torch.stack([*means.values(), norm, self.stop.flag()]).tolist()
        finite = math.isfinite(norm_value)  # gradients are averaged over ranks, so all ranks agree
        if finite and training.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(network.parameters(), training.gradient_clip, norm)
        if finite:
            self.state.optimizer.step()  # itself: Accelerate's wrapper would ask the device again what is known here
        scale_was_too_large = self._update_loss_scale(finite)
        self.optimizer.zero_grad()
        progress.count_step(training.global_batch_size)
        if finite:
            progress.skipped_in_a_row = 0
            self.state.averages.update(network, progress.images, training.global_batch_size)
            corrupt = sum(len(batch.corrupt) for batch in batches) / sum(len(batch.labels) for batch in batches)
            logged = dict(zip(means, values, strict=True))
            progress.add({**logged, "grad_norm": norm_value, "corrupt_fraction": corrupt})
            usual = progress.usual_norm
            if progress.is_spike(norm_value):
                self.say(f"step {progress.step}: the gradient's norm is {norm_value:.4g}, usual is {usual:.4g}")
        else:
            self._count_skipped(batches, logs, expected=scale_was_too_large)
        return bool(stopping)

    def _update_loss_scale(self, finite: bool) -> bool:
        """Let the loss scaler, if there is one, learn from this step's gradients; all ranks have the same.

        Returns:
            Whether it has lowered its scale, so that the next step may well succeed.
        """
        scaler = self.state.scaler
        if scaler is None:
            return False
        if finite:
            scaler.update()
            return False
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() < MIN_LOSS_SCALE:
            scaler.update(MIN_LOSS_SCALE)
        return scaler.get_scale() < before

    def _draw_rows(self, step: int) -> list[Any]:
        """The scalar draws of this rank's micro-batches, out of those of the global batch."""
        first = self.world.rank * self.accumulation
        return self.objective.draw_rows(
            self.config.training.global_batch_size,
            num_micro_batches=self.world.size * self.accumulation,
            wanted=range(first, first + self.accumulation),
            generator=torch_generator(Stream.DRAWS, self.config.training.seed, step),
        )

    def _backward(self, batch: Batch, micro: int, scalars: Any) -> dict[str, Tensor]:
        """Gradients of one micro-batch; ranks synchronise in the last one of a step."""
        images = to_unit_range(batch.images.to(self.world.device, non_blocking=True))
        labels = batch.labels.to(self.world.device, non_blocking=True)
        number = self.world.rank * self.accumulation + micro
        generator = torch_generator(Stream.TRAINING_NOISE, self.config.training.seed, batch.step, number)
        draws = self.objective.draw(images, generator, scalars)
        last = micro == self.accumulation - 1
        average_gradients(self.module, now=last)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
            terms: LossTerms = self.module(images, labels, draws)
            self.accelerator.backward(terms.total / self.accumulation)
        return terms.logs

    def _count_skipped(self, batches: list[Batch], logs: list[dict[str, Tensor]], *, expected: bool) -> None:
        """Count a step without effect; too many that the loss scale does not explain end the run."""
        progress = self.state.progress
        progress.skipped += 1
        if expected:
            return
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            bad = [batch for batch, log in zip(batches, logs) if not torch.isfinite(log["loss"])]
            of_ranks = self.world.gather([index for batch in bad for index in batch.indices.tolist()])
            indices = [str(index) for of_rank in of_ranks for index in of_rank]
            samples = ", ".join(indices[:16]) + (", ..." if indices[16:] else "")
            raise AgreedError(
                f"step {progress.step}: the gradient was not finite {progress.skipped_in_a_row} times in a row "
                f"(samples whose loss is not finite: {samples or 'none'}); lower optimizer.lr, set "
                f"training.gradient_clip, {'try mixed_precision: bf16, ' if self.state.scaler else ''}or look at these "
                "samples"
            )
