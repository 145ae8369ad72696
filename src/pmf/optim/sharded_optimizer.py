"""The optimizer for weights in shards: every rank keeps the moments of its rows and moves them.

A rule for matrices needs whole matrices for its directions (Muon orthogonalises), and each rank has only rows. So each
stack of matrices has an owner in the shard group: every rank sends it its rows, and gets back the rows of the
directions. Stacks are taken in turns, one of each owner: a turn is two all-to-all messages, and all owners compute at
the same time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmf.distributed.owners import Share, divide
from pmf.distributed.shards import is_sharded, local
from pmf.optim.optimizer import RuleOptimizer, trained
from pmf.optim.rule import MatrixRule, Numbers


class ShardGroup:
    """The ranks that share one copy of a sharded tensor, seen from one of them."""

    def __init__(self, tensor: Tensor) -> None:
        assert is_sharded(tensor)
        mesh = tensor.device_mesh
        self.size = mesh.size(mesh.ndim - 1)
        self.rank = mesh.get_local_rank(mesh.ndim - 1)
        self._group = mesh.get_group(mesh.ndim - 1)

    def rows(self, rows: int) -> list[int]:
        """How many rows of a matrix each rank holds: as even as whole chunks are, the last ranks may have none."""
        chunk = -(-rows // self.size)
        return [min(max(rows - rank * chunk, 0), chunk) for rank in range(self.size)]

    def start_exchange(self, parcels: Sequence[Tensor], sizes: Sequence[int]) -> Delivery:
        """Start sending one flat parcel to each rank; ``sizes`` are those of the parcels that come in."""
        received = parcels[0].new_empty(sum(sizes))
        work = torch.distributed.all_to_all_single(
            received, torch.cat(list(parcels)), list(sizes), [len(p) for p in parcels], self._group, async_op=True
        )
        return Delivery(work=work, received=received, sizes=sizes)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Parcels under way."""

    work: Any
    received: Tensor
    sizes: Sequence[int]

    def wait(self) -> list[Tensor]:
        """The parcels, by sender."""
        self.work.wait()
        return list(self.received.split(list(self.sizes)))


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """One stack of matrices for each owner (of some perhaps none), and the rows under way to the owners."""

    stacks: list[list[Tensor]]
    gathering: Delivery


class ShardedRuleOptimizer(RuleOptimizer):
    """The arithmetic of :class:`RuleOptimizer` on DTensors cut by rows; the results are those of one process.

    Where a gradient is missing, it must be missing on all ranks. With several copies of the weights (HSDP) each shard
    group does all of the work, so that nothing but gradients travels between groups.
    """

    def _adopt(self, kind: str, parameters: list[Tensor]) -> None:
        stacks = isinstance(self._rules[kind], MatrixRule)
        self._shares[kind] = divide(parameters, ShardGroup(parameters[0]).size if stacks else 1, stacks=stacks)
        for share in self._shares[kind]:
            self._allocate(kind, share)

    def _allocate(self, kind: str, share: Share) -> None:
        """Zero moments, sharded as the parameters are."""
        for parameter in share.parameters:
            for moment in self._rules[kind].moments:
                self.state[parameter][moment] = torch.zeros_like(parameter)

    def _move(self, numbers: Mapping[str, Numbers]) -> None:
        for kind, shares in self._shares.items():
            rule = self._rules[kind]
            if isinstance(rule, MatrixRule):
                self._move_stacks(rule, shares, numbers[kind])
            else:
                for share in shares:
                    self._update(kind, numbers[kind], trained(share))

    def _move_stacks(self, rule: MatrixRule, shares: list[Share], numbers: Numbers) -> None:
        """Turn by turn; the rows of the next turn travel while this one is computed."""
        ranks = ShardGroup(shares[0].parameters[0])
        queues = [[trained(share) for share in shares if share.owner == rank] for rank in range(ranks.size)]
        under_way: deque[_Turn] = deque()
        for turn in itertools.zip_longest(*queues, fillvalue=[]):
            under_way.append(self._start_turn(ranks, list(turn), rule, numbers))
            if len(under_way) > 1:
                self._finish_turn(ranks, under_way.popleft(), rule, numbers)
        while under_way:
            self._finish_turn(ranks, under_way.popleft(), rule, numbers)

    def _start_turn(self, ranks: ShardGroup, stacks: list[list[Tensor]], rule: MatrixRule, numbers: Numbers) -> _Turn:
        like = local(next(stack[0] for stack in stacks if stack))
        parcels = [like.new_empty(0)] * ranks.size
        for owner, stack in enumerate(stacks):
            if stack:
                parcels[owner] = torch.stack(self._advance(rule, numbers, stack)).flatten()
        return _Turn(stacks=stacks, gathering=ranks.start_exchange(parcels, _parcel_sizes(ranks, stacks[ranks.rank])))

    def _finish_turn(self, ranks: ShardGroup, turn: _Turn, rule: MatrixRule, numbers: Numbers) -> None:
        parcels = turn.gathering.wait()
        mine = turn.stacks[ranks.rank]
        if mine:
            columns = mine[0].shape[1]
            rows = ranks.rows(mine[0].shape[0])
            parts = [parcel.view(len(mine), count, columns) for parcel, count in zip(parcels, rows, strict=True)]
            directions = rule.direct(numbers.settings, torch.cat(parts, dim=1))  # (N, rows, columns)
            parcels = [part.flatten() for part in directions.split(rows, dim=1)]
        sizes = [sum(local(matrix).numel() for matrix in stack) for stack in turn.stacks]
        for stack, parcel in zip(turn.stacks, ranks.start_exchange(parcels, sizes).wait(), strict=True):
            if stack:
                self._follow(rule, numbers, stack, parcel.view(len(stack), *local(stack[0]).shape).unbind())


def _parcel_sizes(ranks: ShardGroup, stack: list[Tensor]) -> list[int]:
    """Elements of each rank's part of a stack."""
    if not stack:
        return [0] * ranks.size
    return [len(stack) * rows * stack[0].shape[1] for rows in ranks.rows(stack[0].shape[0])]
