"""Run under torchrun by test_new_rule.py: new rules divided over processes, against one process."""

import sys

import torch
from torch import nn

from pmf.distributed.world import ALONE, World
from pmf.optim.groups import create_optimizer
from pmf.optim.options import RULES, OptimizerConfig

RULES |= {"lion": "tests.optim.lion:Lion", "unit": "tests.optim.lion:UnitMatrices"}


def trained(world: World) -> dict[str, torch.Tensor]:
    """Weights after three steps, and on the main rank the optimizer's state."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 5))
    optimizer = create_optimizer(network, OptimizerConfig(name="unit", lr=0.1), world)
    for _ in range(3):
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return {**weights, **optimizer.named_state(network)}


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    world = World(rank=rank, size=size, device=torch.device("cpu"), barrier=torch.distributed.barrier)
    alone, divided = trained(ALONE), trained(world)
    assert all(torch.equal(alone[name], tensor) for name, tensor in divided.items())
    assert not world.is_main or alone.keys() == divided.keys()
    world.barrier()
    if world.is_main:
        print(f"equal: {size} ranks, {sum(1 for name in divided if '/' not in name)} parameters")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
