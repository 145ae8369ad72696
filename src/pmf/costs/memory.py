"""What a run needs on each device: state that is always there, and the peak of a step for any micro-batch size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pmf.config.sections import Config
from pmf.costs.live import LiveBytes
from pmf.costs.simulated_step import MicroBatchBytes, act_out
from pmf.distributed.owners import Share, assign_owners, divide
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.base import BaseNetwork
from pmf.net.sizes import create_network
from pmf.optim.groups import create_optimizer, parameter_groups
from pmf.optim.options import ema_names
from pmf.optim.rule import MatrixRule, create_rule
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
            device: ``cuda`` or ``cpu``, whether or not there is one: the optimizer differs.

        Raises:
            UserError: an unknown model, or one that does not fit the images.
        """
        self._config = config
        self._device = device
        self._mode = FakeTensorMode()
        # The step is acted out on CPU tensors: autocast and fused attention exist for them everywhere.
        with torch.device("meta"):
            perceptual = build_distances(config.perceptual)
        self.network = self._network("cpu")
        if config.training.activation_checkpointing:
            self.network.checkpoint_blocks()
        frozen = list(perceptual.networks.values()) if perceptual else []
        with self._mode:
            for module in frozen:
                _put(module.requires_grad_(False).eval(), "cpu")
        self._perceptual_bytes = sum(_size(list(module.parameters())) for module in frozen)
        # Torch's own jvp does not run on fake tensors (torch 2.11).
        # It saves what the dual form saves; its peak is higher.
        self._objective = PixelMeanFlow(
            config.objective.model_copy(update={"derivative": "dual"}),  # type: ignore[arg-type]
            num_classes=config.data.num_classes,
            perceptual=perceptual,
            perceptual_max_t=config.perceptual.max_t,
            static_shapes=config.training.static_shapes,
        )

    def __call__(self, sizes: Sequence[int], processes: int = 1) -> list[Estimate]:
        """Estimate some micro-batch sizes, in their order, for one of so many processes.

        The largest and the one nearest to a quarter of it are acted out, which takes a while; the others lie on the
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
            parts = [self.act_out(largest, processes)] * len(sizes)
        else:
            line = self.line(largest, other, processes)
            parts = [line.at(size) for size in sizes]
        return [
            Estimate(state=state, buckets=state.gradients if accumulates(size) else 0, micro_batch=part)
            for size, part in zip(sizes, parts, strict=True)
        ]

    def line(self, size: int, other: int, processes: int = 1) -> Line:
        """Act out two sizes."""
        return Line(points={each: self.act_out(each, processes) for each in (size, other)})

    def act_out(self, size: int, processes: int = 1) -> MicroBatchBytes:
        """The first micro-batch of a run, on tensors without contents."""
        return act_out(self._mode, self.network, self._objective, self._config, size, processes)

    def state(self, processes: int = 1) -> StateBytes:
        """What is there between two steps, on the heaviest of so many processes."""
        config, network = self._config, self._device_network
        parameters = list(network.parameters())
        shares: list[Share] = []
        optimizer, averages = [0] * processes, [0] * processes
        for group in parameter_groups(network, config.optimizer):
            rule = create_rule(group["kind"])
            of_group = divide(group["params"], processes, stacks=isinstance(rule, MatrixRule))
            for share in of_group:
                optimizer[share.owner] += len(rule.moments) * _size(share.parameters)
            shares += of_group
        for parameter, owner in zip(parameters, assign_owners([p.numel() for p in parameters], processes), strict=True):
            averages[owner] += len(ema_names(config.ema)) * _size([parameter])
        heaviest = max(range(processes), key=lambda rank: optimizer[rank] + averages[rank])
        return StateBytes(
            parameters=_size(parameters),
            gradients=_size([parameter for parameter in parameters if parameter.requires_grad]),
            optimizer=optimizer[heaviest],
            averages=averages[heaviest],
            perceptual=self._perceptual_bytes,
            optimizer_work=self._optimizer_work + _messages(shares, processes),
        )

    @functools.cached_property
    def _optimizer_work(self) -> int:
        """Peak of the buffers of a step by one process; several need no more."""
        with self._mode:
            optimizer = create_optimizer(self._device_network, self._config.optimizer)
            with LiveBytes() as live:
                optimizer.step()
        return live.peak

    @functools.cached_property
    def _device_network(self) -> BaseNetwork:
        return self._network(self._device)  # how matrices are stacked depends on the device

    def _network(self, device: str) -> BaseNetwork:
        data = self._config.data
        with torch.device("meta"):
            network = create_network(
                self._config.model.name,
                image_size=data.image_size,
                num_classes=data.num_classes,
                channels=data.channels,
            )
        with self._mode:
            return _put(network, device)


def _messages(shares: list[Share], processes: int) -> int:
    """The most that are in flight at once; see pmf.distributed.owners.Exchange."""
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
