"""One optimizer step: everything that a step moves, and how micro-batches become gradients, weights and averages."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.costs.arithmetic import StepFlops, step_flops
from pmf.data.codec import create_codec
from pmf.data.loader import Batch
from pmf.distributed.shards import average_gradients, shard_weights, whole
from pmf.distributed.world import World
from pmf.errors import AgreedError
from pmf.flow.objective import LossTerms, MicroBatch, Objective, create_objective
from pmf.optim.ema import WeightAverages
from pmf.optim.groups import create_optimizer
from pmf.perceptual.distances import create_distances
from pmf.randomness import Stream, torch_generator
from pmf.training.captured import CapturedMicroBatches, CudaRecorder
from pmf.training.compilation import compile_step, decide_compilation, failures_in_one_line
from pmf.training.course import Course
from pmf.training.preemption import StopRequest
from pmf.training.state import TrainingState
from pmf.training.update import WeightUpdate

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
        """See :meth:`pmf.flow.objective.Objective.loss`."""
        return self.objective.loss(self.network, images, labels, draws)


class TrainingStep:
    """What a step of a run works on; called once a step, by every rank, with this rank's micro-batches.

    Attributes:
        state: the network, its optimizer and averages, the objective and the progress; checkpoints hold it.
        objective: the loss and its random numbers.
        module: network and objective as DDP, FSDP and autocast wrap them.
        compilation: whether all this is compiled.
        update: from gradients to weights and averages.
        flops: operations of a step for each image, on the main rank; None where they could not be counted.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Any,
        world: World,
        course: Course,
        *,
        accumulation: int,
        stop: StopRequest,
        say: Callable[[str], None],
    ) -> None:
        """Build everything on its device, with the weights of a run that begins; called by all ranks.

        Args:
            accelerator: Accelerate's.
            course: of the run, for the learning rate.
            accumulation: micro-batches of one rank in one step.
            stop: asked in every step whether it is the last one for now.
            say: tells people, on the main rank.

        Raises:
            UserError: perceptual weights are missing, or network, objective and sharding do not go together.
        """
        training = config.training
        self._config, self._accelerator, self._world = config, accelerator, world
        self._course, self._stop, self._say = course, stop, say
        self._accumulation = accumulation
        self._drawn: dict[int, list[Any]] = {}  # scalars of the next step
        self._codec = create_codec(config.data)
        network = network_of(config, generator=torch_generator(Stream.WEIGHTS, training.seed)).to(world.device)
        perceptual = world.main_first(lambda: create_distances(config.perceptual, world.device, say))  # may download
        create = partial(
            create_objective,
            num_classes=config.data.num_classes,
            perceptual=perceptual,
            perceptual_max_t=config.perceptual.max_t,
        )
        self.compilation = decide_compilation(config, network, create(config.objective))
        say(str(self.compilation))
        few_sizes = self.compilation.on or bool(training.cuda_graph)
        self.objective = create(config.objective, static_shapes=training.static_shapes, few_sizes=few_sizes)
        self.objective.require_network(network, compiled=self.compilation.on, parallel=training.parallel)
        # Before checkpointing, and without rows that only fill: what is needed counts.
        self.flops = self._count_flops(network, create(config.objective.countable())) if world.is_main else None
        if training.activation_checkpointing:
            network.checkpoint_blocks()
        if self.compilation.on:
            compile_step(network, self.objective, perceptual, static_shapes=training.static_shapes)
        module = LossModule(network, self.objective)
        sharded = training.parallel != "ddp" and world.size > 1
        if sharded:
            shard_weights(module, training.parallel, training.shard_size, world)
        optimizer = create_optimizer(network, config.optimizer, world)
        averages = WeightAverages(network, config.ema, world)
        # Shards stay where they are, and "evaluation" is Accelerate's word for autocast alone, without DDP.
        with warnings.catch_warnings():
            # DDP's option that sends no buffers; torch 2.15 warns of its name, and has no other yet that does this.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            self.module = accelerator.prepare_model(module, device_placement=not sharded, evaluation_mode=sharded)
        accelerator.prepare_optimizer(optimizer, device_placement=not sharded)  # so that it can unscale the gradients
        self._run: Callable[[MicroBatch[Any]], dict[str, Tensor]] = self._forward_and_backward
        recorder = None
        if training.cuda_graph:
            self.objective.require_recordable(network)
            recorder = CudaRecorder()
            self._run = CapturedMicroBatches(self._run, list(network.parameters()), recorder)
        self.update = WeightUpdate(
            network,
            optimizer,
            averages,
            gradient_clip=training.gradient_clip,
            recorder=recorder if training.cuda_graph == "step" else None,
        )
        self.state = TrainingState(network, optimizer, averages, accelerator.scaler, self.objective)

    def _count_flops(self, network: nn.Module, objective: Objective[Any, Any]) -> StepFlops | None:
        """The count is for people: a method whose step needs the contents of tensors is trained all the same."""
        try:
            return step_flops(network, objective, self._codec.shape)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            self._say(f"warning: the arithmetic of a step is not counted: {type(error).__name__}: {reason}")
            return None

    def __call__(self, batches: list[Batch]) -> bool:
        """Take one step over this rank's micro-batches; a non-finite gradient on any rank skips it on all.

        Returns:
            Whether a signal has asked any rank to stop.

        Raises:
            AgreedError: too many steps in a row were skipped.
        """
        training, progress, network = self._config.training, self.state.progress, self.state.network
        rate = self._course.learning_rate(progress.step)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        logs = self._accumulate_gradients(batches)
        self._accelerator.unscale_gradients()
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))
        means = {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
        # The only wait for the device in a step.
        *values, norm_value, stopping = torch.stack([*means.values(), norm, self._stop.flag()]).tolist()
        finite = math.isfinite(norm_value)  # gradients are averaged over ranks, so all ranks agree
        progress.count_step(training.global_batch_size)
        if finite:
            # The optimizer itself: Accelerate's wrapper would ask the device again what is known here.
            self.update(norm, norm_value, images_seen=progress.images, images_per_step=progress.last_images)
        scale_was_too_large = self._update_loss_scale(finite)
        self.state.optimizer.zero_grad(set_to_none=not training.cuda_graph)  # a graph adds to tensors that stay
        if finite:
            progress.skipped_in_a_row = 0
            corrupt = sum(len(batch.corrupt) for batch in batches) / sum(len(batch.labels) for batch in batches)
            logged = dict(zip(means, values, strict=True))
            progress.add({**logged, "grad_norm": norm_value, "corrupt_fraction": corrupt})
            usual = progress.usual_norm
            if progress.is_spike(norm_value):
                self._say(f"step {progress.step}: the gradient's norm is {norm_value:.4g}, usual is {usual:.4g}")
        else:
            self._count_skipped(batches, logs, expected=scale_was_too_large)
        return bool(stopping)

    def _accumulate_gradients(self, batches: list[Batch]) -> list[dict[str, Tensor]]:
        """Add up the gradients of all micro-batches; returns what the objective logs of each."""
        world, first = self._world, self._world.rank * self._accumulation
        step = batches[0].step
        scalars = self._drawn.pop(step, None) or self._draw_rows(step)
        # Made when they are asked for, so that the noise of one at a time is held.
        micro_batches = [
            partial(self._micro_batch, batch, first + number, scalars[number]) for number, batch in enumerate(batches)
        ]
        self.objective.begin_step(self.state.network, micro_batches, world)
        last = len(batches) - 1
        logs = [self._backward(make(), last=number == last) for number, make in enumerate(micro_batches)]
        # While a GPU still works on these. Scalars are a function of the step, so it does not matter who asks when.
        self._drawn = {step + 1: self._draw_rows(step + 1)}
        return logs

    def _draw_rows(self, step: int) -> list[Any]:
        """The scalars of this rank's micro-batches."""
        first = self._world.rank * self._accumulation
        return self.objective.draw_rows(
            self._config.training.global_batch_size,
            num_micro_batches=self._world.size * self._accumulation,
            wanted=range(first, first + self._accumulation),
            generator=torch_generator(Stream.DRAWS, self._config.training.seed, step),
        )

    def _micro_batch(self, batch: Batch, number: int, scalars: Any) -> MicroBatch[Any]:
        """What a loss is about; a function of the batch and of its number among those of all ranks."""
        device = self._world.device
        key = (self._config.training.seed, batch.step, number)
        encoding = torch_generator(Stream.ENCODING, *key)
        images = self._codec.encode(batch.images.to(device, non_blocking=True), encoding)
        generator = torch_generator(Stream.TRAINING_NOISE, *key)
        draws = self.objective.draw(images, generator, scalars)
        return MicroBatch(images=images, labels=batch.labels.to(device, non_blocking=True), draws=draws)

    def _backward(self, micro_batch: MicroBatch[Any], *, last: bool) -> dict[str, Tensor]:
        """Gradients of one micro-batch; ranks synchronise in the last one of a step."""
        average_gradients(self.module, now=last)
        with contextlib.nullcontext() if last else self._accelerator.no_sync(self.module):
            return self._run(micro_batch)

    def _forward_and_backward(self, micro_batch: MicroBatch[Any]) -> dict[str, Tensor]:
        with failures_in_one_line() if self.compilation.on else contextlib.nullcontext():
            terms: LossTerms = self.module(micro_batch.images, micro_batch.labels, micro_batch.draws)
            self._accelerator.backward(terms.total / self._accumulation)
        return terms.logs

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

    def _count_skipped(self, batches: list[Batch], logs: list[dict[str, Tensor]], *, expected: bool) -> None:
        """Count a step without effect; too many that the loss scale does not explain end the run."""
        progress = self.state.progress
        progress.skipped += 1
        if expected:
            return
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            bad = [batch for batch, log in zip(batches, logs) if not torch.isfinite(log["loss"])]
            of_ranks = self._world.gather([index for batch in bad for index in batch.indices.tolist()])
            indices = [str(index) for of_rank in of_ranks for index in of_rank]
            samples = ", ".join(indices[:16]) + (", ..." if indices[16:] else "")
            raise AgreedError(
                f"step {progress.step}: the gradient was not finite {progress.skipped_in_a_row} times in a row "
                f"(samples whose loss is not finite: {samples or 'none'}); lower optimizer.lr, set "
                f"training.gradient_clip, {'try mixed_precision: bf16, ' if self.state.scaler else ''}or look at these "
                "samples"
            )
