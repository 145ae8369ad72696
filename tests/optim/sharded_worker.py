"""Run under torchrun by test_sharding.py: each check prints its name once the main rank has passed it."""

import sys

import torch
from torch import nn

from pmf.distributed import owners as sharding
from pmf.distributed.world import ALONE, World
from pmf.optim.ema import WeightAverages
from pmf.optim.optimizer import RuleOptimizer
from pmf.optim.options import EmaConfig

# Stacks of two of the matrices below, so that there is something to stack and something to divide.
sharding.STACK_ELEMENTS["cpu"] = 200
EMA = EmaConfig(half_lives_kimg=[0.5, 2], decays=[0.9])


def build(world: World) -> tuple[nn.Module, RuleOptimizer, WeightAverages]:
    """Five matrices of one shape, so that no number of ranks divides them; odd sizes everywhere; one frozen."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(13, 7)] * 5 + [(7, 13), (9, 9)] + [(5,), (1, 3, 7), (11,), (2, 3, 3, 1)] + [(4,)]
    network = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes)
    network[-1].requires_grad_(False)
    trained = [parameter for parameter in network if parameter.requires_grad]
    groups = [
        {"kind": "muon", "params": [p for p in trained if p.ndim == 2]},
        {"kind": "nadamw", "params": [p for p in trained if p.ndim != 2]},
    ]
    return network, RuleOptimizer(groups, weight_decay=0.1, world=world), WeightAverages(network, EMA, world)


def set_gradients(network: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in network.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient if parameter.requires_grad else None


def advance(network: nn.Module, optimizer: RuleOptimizer, averages: WeightAverages, steps: range) -> None:
    for step in steps:
        set_gradients(network, step)
        optimizer.step()
        averages.update(network, (step + 1) * 64, 64)


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def everything(network: nn.Module, optimizer: RuleOptimizer, averages: WeightAverages) -> dict[str, torch.Tensor]:
    state = dict(optimizer.named_state(network))
    for name in averages.names:
        state |= {f"{name}/{key}": tensor for key, tensor in averages.state(name).items()}
    return state


def passed(world: World, check: str) -> None:
    world.barrier()
    if world.is_main:
        print(f"passed: {check}")


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    world = World(rank=rank, size=size, device=torch.device("cpu"), barrier=torch.distributed.barrier)

    alone, divided = build(ALONE), build(world)
    advance(*alone, range(4))
    advance(*divided, range(4))
    assert equal(dict(alone[0].named_parameters()), dict(divided[0].named_parameters()))
    passed(world, "weights")

    ours, theirs = everything(*divided), everything(*alone)
    assert equal(ours, theirs) if world.is_main else ours == {}
    for name in divided[2].names:
        assert equal(divided[2].state(name, everywhere=True), alone[2].state(name))
    passed(world, "state")

    kept = world.gather(sum(m.numel() for moments in divided[1].state.values() for m in moments.values()))
    total = sum(m.numel() for moments in alone[1].state.values() for m in moments.values())
    assert sum(kept) == total and max(kept) < 0.75 * total, f"{kept} of {total}"
    passed(world, "division")

    resumed = build(world)
    resumed[0].load_state_dict(alone[0].state_dict())
    resumed[1].load_named_state(resumed[0], alone[1].named_state(alone[0]))
    for name in resumed[2].names:
        resumed[2].load(name, alone[2].state(name))
    advance(*alone, range(4, 6))
    advance(*resumed, range(4, 6))
    assert equal(dict(alone[0].named_parameters()), dict(resumed[0].named_parameters()))
    ours, theirs = everything(*resumed), everything(*alone)
    assert equal(ours, theirs) if world.is_main else ours == {}
    passed(world, "resuming what one process saved")

    network, optimizer, _ = build(world)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    set_gradients(network, 0)
    for index in (0, 3, 6, 8):
        if rank == index % size:  # another rank each time, so for some the owner and for some not
            network[index].grad = None
    optimizer.step()
    for parameter, old in zip(network.parameters(), before, strict=True):
        copies = world.gather(parameter.detach())
        assert all(torch.equal(copies[0], copy) for copy in copies)
        assert bool(parameter.isfinite().all()) and old.shape == parameter.shape
    moved = [not torch.equal(parameter, old) for parameter, old in zip(network.parameters(), before, strict=True)]
    assert all(moved[index] for index in (1, 2, 4, 5, 7, 9, 10)), moved
    assert not moved[-1], "a frozen parameter moved"
    passed(world, "missing gradients")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
