"""What a run needs on each device: state that is always there, and the peak of a step for any micro-batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.costs.live import LiveBytes
from pmf.costs.simulated_step import MicroBatchBytes, simulate
from pmf.costs.without_contents import without_contents
from pmf.distributed.world import World
from pmf.flow.objective import create_objective
from pmf.optim.ema import WeightAverages
from pmf.optim.groups import create_optimizer
from pmf.perceptual.distances import build_distances

MOST_RANKS = 16
"""Ranks whose state is simulated, from the first on: what is largest is given out first."""


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes between two steps, on the process that has most of them; and what an optimizer step needs besides.

    Attributes:
        parameters, gradients: float32, whole on every process.
        optimizer, averages: those of the parameters that the process owns.
        perceptual: the frozen networks of the perceptual losses.
        optimizer_work: buffers of the optimizer step, when activations are gone.
    """

    parameters: int
    gradients: int
    optimizer: int
    averages: int
    perceptual: int
    optimizer_work: int

    @property
    def total(self) -> int:
        """What is there always."""
        return self.parameters + self.gradients + self.optimizer + self.averages + self.perceptual


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of a run at one micro-batch size, on one device.

    Attributes:
        buckets: a second copy of the gradients, which DDP keeps where gradients also accumulate over micro-batches.
    """

    state: StateBytes
    buckets: int
    micro_batch: MicroBatchBytes

    @property
    def peak(self) -> int:
        """The most at any time, without what the allocator wastes and what the driver takes for itself."""
        return self.state.total + self.buckets + max(self.micro_batch.peak, self.state.optimizer_work)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Bytes of a micro-batch as a linear function of its size, through two known points."""

    points: dict[int, MicroBatchBytes]

    def at(self, size: int) -> MicroBatchBytes:
        """The bytes of any size."""
        (a, first), (b, second) = self.points.items()

        def between(one: int, other: int) -> int:
            return round(one + (size - a) / (b - a) * (other - one))

        return MicroBatchBytes(saved=between(first.saved, second.saved), peak=between(first.peak, second.peak))


class MemoryEstimator:
    """Estimates for one config on one kind of device; nothing is computed, no data or weights are read.

    Gradients count throughout; only a single process without accumulation is without them for a part of each step.

    Attributes:
        network: parameters with shapes and gradients, without contents.
    """

    def __init__(self, config: Config, *, device: str = "cuda") -> None:
        """Build everything without contents.

        Args:
            device: ``cuda`` or ``cpu``, whether or not there is one: on CUDA more operations are fused, so that less is
                kept, and matrices are stacked otherwise.

        Raises:
            UserError: an unknown model, or one that does not fit the images.
        """
        self._config = config
        self._device = device
        self._mode = FakeTensorMode()
        data, training = config.data, config.training
        with torch.device("meta"):
            network = network_of(config)
            perceptual = build_distances(config.perceptual)
        if training.activation_checkpointing:
            network.checkpoint_blocks()
        frozen = list(perceptual.networks.values()) if perceptual else []
        for module in frozen:
            module.requires_grad_(False).eval()
        self._perceptual_bytes = sum(_size(list(module.parameters())) for module in frozen)
        objective = create_objective(
            config.objective.countable(),
            num_classes=data.num_classes,
            perceptual=perceptual,
            perceptual_max_t=config.perceptual.max_t,
            static_shapes=training.static_shapes,
        )
        with self._mode:
            self.network, self._objective = without_contents((network, objective), device)
            for parameter in self.network.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

    def __call__(self, sizes: Sequence[int], processes: int = 1) -> list[Estimate]:
        """Estimate some micro-batch sizes, in their order, for one of so many processes.

        The largest and the one nearest to a quarter of it are simulated, which takes a while; the others lie on the
        line through these two.

        Raises:
            CrossFieldError: a size times the processes does not divide the global batch.
        """
        largest = max(sizes)
        other = min((size for size in sizes if size < largest), key=lambda size: abs(4 * size - largest), default=None)
        state = self.state(processes)

        def accumulates(size: int) -> bool:
            return processes > 1 and size * processes < self._config.training.global_batch_size

        if other is None:
            parts = [self.simulate(largest, processes)] * len(sizes)
        else:
            line = self.line(largest, other, processes)
            parts = [line.at(size) for size in sizes]
        return [
            Estimate(state=state, buckets=state.gradients if accumulates(size) else 0, micro_batch=part)
            for size, part in zip(sizes, parts, strict=True)
        ]

    def line(self, size: int, other: int, processes: int = 1) -> Line:
        """Simulate two sizes."""
        return Line(points={each: self.simulate(each, processes) for each in (size, other)})

    def simulate(self, size: int, processes: int = 1) -> MicroBatchBytes:
        """The first micro-batch of a run, on tensors without contents."""
        return simulate(self._mode, self.network, self._objective, self._config, size, processes)

    def state(self, processes: int = 1) -> StateBytes:
        """What is there between two steps, on the heaviest of so many processes.

        Of more than MOST_RANKS processes, the first so many are simulated.
        """
        parameters = list(self.network.parameters())
        heaviest = max(
            (self._rank_bytes(rank, processes) for rank in range(min(processes, MOST_RANKS))),
            key=lambda found: found.optimizer + found.averages,
        )
        return StateBytes(
            parameters=_size(parameters),
            gradients=_size([parameter for parameter in parameters if parameter.requires_grad]),
            optimizer=heaviest.optimizer,
            averages=heaviest.averages,
            perceptual=self._perceptual_bytes,
            optimizer_work=self._optimizer_work(heaviest.world),
        )

    def _rank_bytes(self, rank: int, processes: int) -> _RankBytes:
        world = _SimulatedWorld(rank=rank, size=processes, device=torch.device(self._device), barrier=lambda: None)
        with self._mode, LiveBytes() as live:
            optimizer = create_optimizer(self.network, self._config.optimizer, world)
            moments = live.current
            averages = WeightAverages(self.network, self._config.ema, world)
            both = live.current
        del optimizer, averages
        return _RankBytes(world=world, optimizer=moments, averages=both - moments)

    def _optimizer_work(self, world: World) -> int:
        """Peak of the buffers of an optimizer step: its own, and the messages to and from other processes."""
        with self._mode:
            optimizer = create_optimizer(self.network, self._config.optimizer, world)
            with LiveBytes() as live:
                optimizer.step()
        return live.peak


@dataclass(frozen=True, kw_only=True)
class _RankBytes:
    """State that one process keeps for all."""

    world: World
    optimizer: int
    averages: int


class _Sent:
    """A message that is under way until somebody waits for it."""

    def wait(self) -> bool:
        return True


class _SimulatedWorld(World):
    """One of several processes, without the others."""

    def broadcast(self, tensor: Tensor, source: int) -> Any:  # noqa: ARG002  # nothing is sent
        return _Sent()


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
