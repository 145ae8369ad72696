"""What a run needs on each device: state that is always there, and the peak of a step for any micro-batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pmf.config import Config, ema_names
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.memory.live import LiveBytes
from pmf.memory.step import MicroBatchBytes, act_out
from pmf.net.sizes import create_network
from pmf.optim.groups import create_optimizer, parameter_groups
from pmf.optim.muon import MOMENTS
from pmf.optim.sharding import Share, assign_owners, divide
from pmf.perceptual.distances import build_distances

Module = TypeVar("Module", bound=nn.Module)


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


@dataclass(frozen=True)
class Line:
    """Bytes as a linear function of the micro-batch size, through one or two known points."""

    size: int
    bytes: MicroBatchBytes
    other_size: int = 0
    other_bytes: MicroBatchBytes = MicroBatchBytes(saved=0, peak=0)

    def at(self, size: int) -> MicroBatchBytes:
        """The bytes of any size."""
        share = (size - self.other_size) / (self.size - self.other_size)

        def between(a: int, b: int) -> int:
            return round(b + share * (a - b))

        return MicroBatchBytes(
            saved=between(self.bytes.saved, self.other_bytes.saved),
            peak=between(self.bytes.peak, self.other_bytes.peak),
        )


class MemoryEstimator:
    """Estimates for one config on one kind of device; nothing is computed, no data or weights are read.

    Gradients count throughout; only a single process without accumulation is without them for a part of each step.
    """

    def __init__(self, config: Config, *, processes: int = 1, device: str = "cuda") -> None:
        """Build everything without contents.

        Args:
            processes: that share optimizer state and averages.
            device: ``cuda`` or ``cpu``, whether or not there is one: the optimizer differs.

        Raises:
            UserError: an unknown model, or one that does not fit the images.
        """
        self._config = config
        self._processes = processes
        self._mode = FakeTensorMode()
        data = config.data
        with torch.device("meta"):
            network = create_network(
                config.model.name, image_size=data.image_size, num_classes=data.num_classes, channels=data.channels
            )
            perceptual = build_distances(config.perceptual)
        if config.training.activation_checkpointing:
            network.checkpoint_blocks()
        frozen = list(perceptual.networks.values()) if perceptual else []
        with self._mode:
            self.state = _state_bytes(_put(network, device), frozen, config, processes)
            # The step is acted out on CPU tensors: autocast and fused attention exist for them everywhere.
            self._network = _put(network, "cpu")
            for module in frozen:
                _put(module.requires_grad_(False).eval(), "cpu")
        self._objective = PixelMeanFlow(
            config.objective,
            num_classes=data.num_classes,
            perceptual=perceptual,
            perceptual_max_t=config.perceptual.max_t,
            static_shapes=config.training.static_shapes,
        )

    def __call__(self, sizes: Sequence[int]) -> list[Estimate]:
        """Estimate some micro-batch sizes, in their order.

        The largest and the one nearest to a quarter of it are acted out, which takes a while; the others lie on the
        line through these two.

        Raises:
            CrossFieldError: a size times the processes does not divide the global batch.
        """
        largest = max(sizes)
        other = min((size for size in sizes if size < largest), key=lambda size: abs(4 * size - largest), default=None)
        line = Line(largest, self._act_out(largest), *((other, self._act_out(other)) if other else ()))
        return [
            Estimate(state=self.state, buckets=self._buckets(size), micro_batch=line.at(size)) for size in sizes
        ]

    def _act_out(self, size: int) -> MicroBatchBytes:
        return act_out(self._mode, self._network, self._objective, self._config, size, self._processes)

    def _buckets(self, size: int) -> int:
        accumulates = size * self._processes < self._config.training.global_batch_size
        return self.state.gradients if accumulates and self._processes > 1 else 0


def _state_bytes(network: nn.Module, frozen: list[nn.Module], config: Config, processes: int) -> StateBytes:
    parameters = list(network.parameters())
    groups = parameter_groups(network, config.optimizer)
    shares = [share for group in groups for share in divide(group["kind"], group["params"], processes)]
    optimizer, averages = [0] * processes, [0] * processes
    for share in shares:
        optimizer[share.owner] += len(MOMENTS[share.kind]) * _size(share.parameters)
    for parameter, owner in zip(parameters, assign_owners([p.numel() for p in parameters], processes), strict=True):
        averages[owner] += len(ema_names(config.ema)) * _size([parameter])
    heaviest = max(range(processes), key=lambda rank: optimizer[rank] + averages[rank])
    return StateBytes(
        parameters=_size(parameters),
        gradients=_size([parameter for parameter in parameters if parameter.requires_grad]),
        optimizer=optimizer[heaviest],
        averages=averages[heaviest],
        perceptual=sum(_size(list(module.parameters())) for module in frozen),
        optimizer_work=_optimizer_work(network, config) + _messages(shares, processes),
    )


def _optimizer_work(network: nn.Module, config: Config) -> int:
    """Peak of the buffers of a step by one process; several need no more."""
    optimizer = create_optimizer(network, config.optimizer)
    with LiveBytes() as live:
        optimizer.step()
    return live.peak


def _messages(shares: list[Share], processes: int) -> int:
    """The most that are in flight at once; see pmf.optim.sharding.Exchange."""
    if processes == 1:
        return 0
    return sum(sorted((_size(share.parameters) for share in shares), reverse=True)[: 2 * processes + 1])


def _size(tensors: list[torch.Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _put(module: Module, device: str) -> Module:
    """Give a module fake parameters, with gradients, and fake buffers on a device. Module.to cannot do that."""
    for part in module.modules():
        for name, old in list(part.named_parameters(recurse=False)):
            parameter = nn.Parameter(torch.empty(old.shape, device=device), requires_grad=old.requires_grad)
            parameter.grad = torch.empty_like(parameter) if old.requires_grad else None
            part.register_parameter(name, parameter)
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device), persistent=False)
    return module
