"""A rule that the library does not have is one class and one row: chosen by name, moved, saved, restored, divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pmf.optim.groups import create_optimizer
from pmf.optim.options import RULES, OptimizerConfig
from tests.launch import run_command
from tests.optim.lion import Lion, UnitMatrices
from tests.optim.reference import normal

SETTINGS = {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": 0.1}
STEPS = 200


@pytest.fixture
def lion(monkeypatch) -> None:
    monkeypatch.setitem(RULES, "lion", Lion)


class Quadratic(nn.Module):
    """Half the squared distance of a matrix and a vector from their targets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6, dtype=torch.float64)
        self.targets = [normal(6, 4, seed=1), normal(6, seed=2)]
        for seed, parameter in enumerate(self.parameters(), start=3):
            parameter.data.copy_(normal(*parameter.shape, seed=seed))

    def distance(self) -> torch.Tensor:
        pairs = zip(self.parameters(), self.targets, strict=True)
        return sum((0.5 * (parameter - target).square().sum() for parameter, target in pairs), torch.zeros(()))


def train(network: Quadratic, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        network.distance().backward()
        optimizer.step()


def test_a_name_is_refused_until_its_row_is_there(monkeypatch):
    with pytest.raises(ValidationError, match="'muon', 'nadamw' or 'adamw'"):
        OptimizerConfig(name="lion")
    monkeypatch.setitem(RULES, "lion", "tests.optim.lion:Lion")
    assert OptimizerConfig(name="lion").name == "lion"


def test_it_moves_as_its_formula_in_float64(lion):
    network = Quadratic()
    weights = [parameter.detach().numpy().copy() for parameter in network.parameters()]
    momenta = [np.zeros_like(values) for values in weights]
    start = network.distance().item()
    train(network, create_optimizer(network, OptimizerConfig(name="lion", **SETTINGS)), STEPS)
    for _ in range(STEPS):
        for i, target in enumerate(network.targets):
            gradient = weights[i] - target.numpy()
            direction = np.sign(0.9 * momenta[i] + 0.1 * gradient)
            weights[i] = weights[i] * (1 - 0.05 * 0.1) - 0.05 * direction
            momenta[i] = 0.99 * momenta[i] + 0.01 * gradient
    for parameter, expected in zip(network.parameters(), weights, strict=True):
        # float64 of the same operations; 200 updates of 0.05 round to 1e-14 in all
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=1e-12)
    assert network.distance().item() < 0.1 * start


def test_it_goes_on_from_what_it_saved_bit_for_bit(lion):
    straight, resumed = Quadratic(), Quadratic()
    config = OptimizerConfig(name="lion", **SETTINGS)
    whole, first = create_optimizer(straight, config), create_optimizer(resumed, config)
    train(straight, whole, 6)
    train(resumed, first, 3)
    state = {name: tensor.clone() for name, tensor in first.named_state(resumed).items()}
    assert set(state) == {"momentum/layer.weight", "momentum/layer.bias", "step/lion"}
    second = create_optimizer(resumed, config)
    second.load_named_state(resumed, state)
    train(resumed, second, 3)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(t, second.named_state(resumed)[name]) for name, t in whole.named_state(straight).items())


def test_a_rule_for_matrices_leaves_the_rest_to_the_one_it_names(lion, monkeypatch):
    monkeypatch.setitem(RULES, "unit", UnitMatrices)
    network = Quadratic()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = create_optimizer(network, OptimizerConfig(name="unit", lr=0.05))
    assert [group["kind"] for group in optimizer.param_groups] == ["unit", "lion"]
    train(network, optimizer, 1)
    matrix, vector = (parameter.detach() - old for parameter, old in zip(network.parameters(), before, strict=True))
    assert torch.linalg.matrix_norm(matrix, ord=2).item() == pytest.approx(0.05 * 6**0.5, rel=1e-12)
    torch.testing.assert_close(vector.abs(), torch.full((6,), 0.05, dtype=torch.float64), rtol=1e-12, atol=0)


def test_two_processes_move_it_as_one_does_to_the_bit():
    result = run_command("tests/optim/new_rule_worker.py", ranks=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "equal: 2 ranks, 4 parameters"
