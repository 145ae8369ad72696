"""The optimizer and the averages divided over processes equal those of one process, to the bit."""

from __future__ import annotations

import pytest

from pmf.distributed import owners as sharding
from pmf.distributed.owners import assign_owners, divide
from tests.launch import run_command
from tests.optim.reference import normal

CHECKS = ("weights", "state", "division", "resuming what one process saved", "missing gradients")


@pytest.mark.parametrize("ranks", [2, 3])
def test_divided_over_processes_equals_one_process_to_the_bit(ranks):
    result = run_command("tests/optim/sharded_worker.py", ranks=ranks)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("passed")] == [
        f"passed: {check}" for check in CHECKS
    ]


def test_owners_share_the_cost():
    assert assign_owners([1, 5, 3, 3, 2], 2) == [1, 0, 1, 1, 0]
    assert assign_owners([7.0], 3) == [0]
    costs = [float(i % 7 + 1) for i in range(100)]
    owners = assign_owners(costs, 8)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(8)]
    assert max(loads) - min(loads) <= 1.0  # the last pieces dealt are the cheapest


def test_stacks_are_those_of_one_process_and_turns_alternate(monkeypatch):
    monkeypatch.setitem(sharding.STACK_ELEMENTS, "cpu", 50)
    matrices = [normal(6, 4) for _ in range(7)] + [normal(4, 4)]
    stacks = {
        world: [[id(p) for p in share.parameters] for share in divide(matrices, world, stacks=True)] for world in (1, 3)
    }
    assert sorted(stacks[1]) == sorted(stacks[3])
    assert sorted(len(stack) for stack in stacks[1]) == [1, 1, 2, 2, 2]
    assert [share.owner for share in divide(matrices, 3, stacks=True)] == [0, 1, 2, 0, 1]
    assert [share.owner for share in divide(matrices[:2], 3, stacks=False)] == [0, 1]  # no empty shares
