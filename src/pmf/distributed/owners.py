"""Work and state divided over ranks: who owns what, and how the owner's results reach the others.

Every rank holds all weights and all gradients. What follows from them (moments, orthogonalised steps, averages) is
computed and kept by one owner each. Which rank that is depends only on sizes, so all ranks agree without asking, and
every message is sent whatever the data: a rank that lacks a gradient never keeps the others waiting.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmf.distributed.shards import complete, is_sharded
from pmf.distributed.world import World

# Operations on whole matrices (Newton-Schulz) take those of one shape together, up to so many elements: on a GPU enough
# to fill it and little enough to leave several stacks for each rank; on a CPU a large product is fastest alone. What is
# stacked with what depends on shapes alone, because it may decide the last bit of a product: so the number of ranks
# changes no result.
STACK_ELEMENTS = {"cpu": 2**15, "cuda": 2**23}


def assign_owners(costs: Sequence[float], num_ranks: int) -> list[int]:
    """A rank for each piece of work: the most expensive first, each to the rank with the least so far."""
    load = [0.0] * num_ranks
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[index] = load.index(min(load))
        load[owners[index]] += costs[index]
    return owners


@dataclass(frozen=True, kw_only=True)
class Share:
    """Parameters that one rank moves together: a stack of matrices of one shape, or any tensors."""

    parameters: list[Tensor]
    owner: int


def divide(parameters: list[Tensor], num_ranks: int, *, stacks: bool) -> list[Share]:
    """Parameters in shares, in turn one of each rank, so that no rank waits long for its first.

    Args:
        stacks: the parameters are matrices, and each share is a stack of them: of one shape, at most STACK_ELEMENTS
            elements (or one matrix). Otherwise there is one share for each rank that has any.
    """
    if stacks:
        parts = _stacks(parameters)
        owners = assign_owners([len(part) * part[0].numel() * min(part[0].shape) for part in parts], num_ranks)
    else:
        owner_of = assign_owners([parameter.numel() for parameter in parameters], num_ranks)
        parts = [[p for p, owner in zip(parameters, owner_of) if owner == rank] for rank in range(num_ranks)]
        owners = list(range(num_ranks))
    queues: list[list[Share]] = [[] for _ in range(num_ranks)]
    for part, owner in zip(parts, owners, strict=True):
        if part:
            queues[owner].append(Share(parameters=part, owner=owner))
    turns = itertools.zip_longest(*queues)
    return [share for turn in turns for share in turn if share is not None]


def _stacks(matrices: list[Tensor]) -> list[list[Tensor]]:
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        by_shape.setdefault(matrix.shape, []).append(matrix)
    stacks = []
    for same in by_shape.values():
        size = max(1, STACK_ELEMENTS.get(same[0].device.type, 1) // same[0].numel())
        stacks += [same[start : start + size] for start in range(0, len(same), size)]
    return stacks


@dataclass(frozen=True, kw_only=True)
class _Message:
    work: Any
    buffer: Tensor
    targets: list[Tensor]


class Exchange:
    """Sends tensors from their owners to all ranks, in the background of what the owners compute next."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._in_flight: deque[_Message] = deque()

    def send(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Give the owner's values to all; called by all ranks, in the same order.

        Args:
            tensors: of one dtype and device; the others' are overwritten by the time of :meth:`finish`.
        """
        if self._world.size == 1:
            return
        mine = owner == self._world.rank
        if mine:
            buffer = torch.cat([tensor.detach().flatten() for tensor in tensors])
        else:
            buffer = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors))
        work = self._world.broadcast(buffer, owner)
        self._in_flight.append(_Message(work=work, buffer=buffer, targets=[] if mine else list(tensors)))
        if len(self._in_flight) > 2 * self._world.size:  # bounds the memory of the buffers
            self._receive_oldest()

    def finish(self) -> None:
        """Wait for everything sent."""
        while self._in_flight:
            self._receive_oldest()

    def _receive_oldest(self) -> None:
        message = self._in_flight.popleft()
        message.work.wait()
        if message.targets:
            parts = message.buffer.split([tensor.numel() for tensor in message.targets])
            shaped = [part.view_as(target) for target, part in zip(message.targets, parts, strict=True)]
            torch._foreach_copy_(message.targets, shaped)


def collect(
    world: World, own: Mapping[str, Tensor], like: Mapping[str, Tensor], owners: Mapping[str, int], *, everywhere: bool
) -> dict[str, Tensor]:
    """All ranks' tensors in one place; called by all ranks.

    Args:
        own: those of this rank, by name.
        like: for every name a tensor of the right shape and dtype.
        owners: the rank of each name.
        everywhere: for all ranks, or for the main one only (the others get an empty dict).

    Returns:
        With one rank the live tensors, otherwise copies on the CPU, in the order of ``like``.
    """
    if world.size == 1:
        return dict(own)
    if any(is_sharded(tensor) for tensor in own.values()):  # in shards: every rank has a part of each
        return complete(own, everywhere=everywhere)
    gathered = {}
    for name, pattern in like.items():
        buffer = torch.empty(pattern.shape, dtype=pattern.dtype, device=world.device)
        if name in own:
            buffer.copy_(own[name])
        world.broadcast(buffer, owners[name]).wait()
        if everywhere or world.is_main:
            gathered[name] = buffer.cpu()
    return gathered
