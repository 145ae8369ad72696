"""Averages against plain loops; the official betas and averages are in tests/parity."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pmf.errors import UserError
from pmf.optim.ema import WeightAverages, half_life_decay
from pmf.optim.options import AVERAGES, EmaConfig, ema_names

CONFIG = EmaConfig(half_lives_kimg=[0.25, 1, 500], decays=[0.75, 0.9999])


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).requires_grad_(False))


def test_each_average_equals_its_own_loop():
    network = small_network()
    averages = WeightAverages(network, CONFIG)
    expected = {name: [p.detach().double() for p in network.parameters()] for name in averages.names}
    assert averages.names == ema_names(CONFIG) == ["0.25", "1", "500", "0.75", "0.9999"]
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        seen, batch = step * 64, 64
        averages.update(network, seen, batch)
        for name, tensors in expected.items():
            half_life = min(float(name) * 1000, seen / 20)
            beta = float(name) if name in ("0.75", "0.9999") else 2.0 ** (-batch / half_life)
            expected[name] = [beta * t + (1 - beta) * p.double() for t, p in zip(tensors, network.parameters())]
    for name, tensors in expected.items():
        state = averages.state(name)
        assert list(state) == [key for key, _ in network.named_parameters()]
        for tensor, average in zip(tensors, state.values(), strict=True):
            assert average.dtype == torch.float32 and not average.requires_grad
            # float32 rounding of values of order 5 over 29 updates
            torch.testing.assert_close(average.double(), tensor.detach(), rtol=0, atol=1e-5)


def test_a_half_life_halves_the_old_weights():
    assert half_life_decay(1, images_seen=10**9, images_per_step=1000) == 0.5
    assert half_life_decay(10**6, images_seen=20_000, images_per_step=1000) == 0.5  # a twentieth of the images seen


def test_averages_start_as_a_copy_of_the_weights():
    network = small_network()
    averages = WeightAverages(network, CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(tensor.any() for name in averages.names for tensor in averages.state(name).values())


def test_round_trip_continues_bit_for_bit():
    network = small_network()
    straight, resumed = WeightAverages(network, CONFIG), WeightAverages(network, CONFIG)
    network[0].weight.data.mul_(1.7)
    straight.update(network, 64, 64)
    for name in straight.names:
        resumed.load(name, {key: tensor.clone() for key, tensor in straight.state(name).items()})
    network[0].weight.data.mul_(0.3)
    for averages in (straight, resumed):
        averages.update(network, 128, 64)
    for name in straight.names:
        for key, tensor in straight.state(name).items():
            assert torch.equal(tensor, resumed.state(name)[key])


def test_loading_other_weights_names_the_first_differences():
    averages = WeightAverages(small_network(), CONFIG)
    other = {**averages.state("500"), "0.weight": torch.zeros(4, 4), "2.weight": torch.zeros(1)}
    del other["1.bias"]
    with pytest.raises(UserError) as caught:
        averages.load("500", other)
    assert str(caught.value).startswith(
        "average '500' is of another run: 1.bias is missing; 0.weight is (4, 4) there and (4, 3) here; "
        "2.weight is unknown here; check"
    )


def power_decay(power: float, images_seen: int, images_per_step: int) -> float:
    """A newcomer's rule: each average weighs images by the given power of their number."""
    return (1 - images_per_step / images_seen) ** (power + 1)


def test_a_new_rule_is_a_function_and_a_row(monkeypatch):
    with pytest.raises(ValidationError, match="is 'power_6'; choose from: half_life_NUMBER, decay_NUMBER"):
        EmaConfig(others=["power_6"])
    monkeypatch.setitem(AVERAGES, "power", power_decay)
    config = EmaConfig(half_lives_kimg=[1], others=["power_6", "power_0.5"])
    assert ema_names(config) == ["1", "power_6", "power_0.5"]
    network = small_network()
    averages = WeightAverages(network, config)
    assert averages.names == ["1", "power_6", "power_0.5"]
    seen = []
    for step in range(1, 8):
        with torch.no_grad():
            network[0].weight.normal_()
        seen.append(network[0].weight.detach().double().clone())
        averages.update(network, step * 64, 64)
    for power in (6, 0.5):
        shares = torch.tensor([step ** (power + 1) - (step - 1) ** (power + 1) for step in range(1, 8)])
        expected = sum(share / shares.sum() * weights for share, weights in zip(shares, seen, strict=True))
        average = averages.state(f"power_{power}")["0.weight"].double()
        torch.testing.assert_close(average, expected, rtol=0, atol=1e-6)  # float32 sums of values of order 1


def test_a_weight_that_is_none_ends_the_run():
    averages = WeightAverages(small_network(), EmaConfig(others=["decay_1.5"]))
    with pytest.raises(UserError, match=r"ema.others: decay_1.5 gives the old average the weight 1.5"):
        averages.update(small_network(), 64, 64)
