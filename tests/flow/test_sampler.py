"""Samplers: how steps of the average velocity lead from noise to an image, and rows that are added at run time."""

from __future__ import annotations

import itertools

import pytest
import torch

from pmf.config.sections import Config
from pmf.flow.objective import OBJECTIVES, create_objective
from pmf.flow.options import SAMPLERS
from pmf.flow.parameterization import ImagePrediction
from pmf.net.interface import HeadOutputs
from pmf.tables import resolve

SETTINGS = {"omega": 2.0, "interval": (0.1, 0.7)}
LABELS = torch.tensor([0, 1])
NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Network:
    """Predicts half of what it sees, and notes the conditions."""

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, z, conditions, heads="uv", tangent=None):
        assert heads == "u"
        names = ("t", "h", "omega", "t_min", "t_max")
        self.seen.append(tuple(round(float(getattr(conditions, name)[1]), 6) for name in names))
        return HeadOutputs(u=z / 2, v=None)


def generate(network: Network, **sampling) -> torch.Tensor:
    config = Config.model_validate({"data": {"kind": "synthetic"}, "training": {"max_steps": 1}})
    objective = create_objective(config.objective, num_classes=2)
    return objective.generate(network, NOISE, LABELS, **SETTINGS, **sampling)


def test_equal_steps_are_the_loop_of_the_papers():
    network = Network()
    images = generate(network, num_steps=4, sampler="equal_steps")
    z = NOISE
    for t in (1.0, 0.75, 0.5, 0.25):
        z = z - 0.25 * ImagePrediction().to_velocity(z / 2, z, torch.full((2,), t))
    assert torch.equal(images, z)
    assert network.seen == [(t, 0.25, 2.0, 0.1, 0.7) for t in (1.0, 0.75, 0.5, 0.25)]


@pytest.mark.parametrize("name", ["meanflow", "imf"])
def test_the_networks_of_both_parents_predict_the_velocity_itself(name):
    network = Network()
    objective = create_objective(resolve(OBJECTIVES[name].options)(), num_classes=2)
    images = objective.generate(network, NOISE, LABELS, omega=1.0, interval=(0.0, 1.0), num_steps=2)
    assert torch.equal(images, NOISE * 0.75 * 0.75)  # z - 0.5 u(z), u(z) = z / 2, twice
    assert network.seen == [(t, 0.5, 1.0, 0.0, 1.0) for t in (1.0, 0.5)]


def late_steps(velocity, noise, *, num_steps, first=0.9, **_):
    """A row of a newcomer's: one step to ``first``, the others equal."""
    z, times = noise, [1.0, *torch.linspace(first, 0.0, num_steps).tolist()]
    for t, r in itertools.pairwise(times):
        z = z - (t - r) * velocity(z, t, r)
    return z


def test_a_sampler_added_at_run_time_gets_the_other_options(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "late_steps", "tests.flow.test_sampler:late_steps")
    network = Network()
    images = generate(network, num_steps=2, sampler="late_steps", first=0.5)
    assert [(t, h) for t, h, *_ in network.seen] == [(1.0, 0.5), (0.5, 0.5)]
    assert torch.equal(images, generate(Network(), num_steps=2, sampler="equal_steps"))
    other = generate(network, num_steps=2, sampler="late_steps")
    assert [(t, h) for t, h, *_ in network.seen[2:]] == [(1.0, pytest.approx(0.1)), (pytest.approx(0.9), 0.9)]
    assert not torch.equal(images, other)
