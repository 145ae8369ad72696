"""The step under float16 autocast: tangents that leave half precision's range, and gradients against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pmf.net.layers
from pmf.flow.derivative import jvp_derivative
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.parameterization import create_parameterization
from pmf.net.dual import Dual, scaled
from pmf.net.interface import Conditions
from pmf.net.layers import Block
from pmf.net.positions import Rotation, grid_angles
from tests.flow.methods import METHODS
from tests.flow.small_step import gradients, grown, in_float32, inputs, shape_draws, small_network

LARGEST = torch.finfo(torch.float16).max  # 65504
LOSS_SCALE = 2.0**16  # GradScaler's first
# A product of float16 numbers is right to 2^-11 = 5e-4; through the few blocks of these networks 5e-3 was measured at
# worst over the cases below, and 2e-2 for bfloat16, which has 8 bits.
CLOSE = 1e-2


def compare(
    derivative: str,
    time_mean: float,
    gain: float,
    *,
    method: str = "pmf",
    checkpointed: bool = False,
    dtype: torch.dtype = torch.float16,
) -> dict[str, float]:
    """Relative errors under autocast, against float64, and how large things became."""
    chosen = METHODS[method]
    objective = chosen.objective(chosen.options(derivative=derivative, time_mean=time_mean))
    images, labels, standard = inputs()
    network, draws = grown(chosen.network(), gain), objective.shape(standard)
    exact = objective.evaluate(network, images, labels, draws).du_dt
    terms = objective.loss(network, images, labels, draws)
    expected = torch.cat([g.flatten() for g in gradients(terms.total, network).values()])

    network, draws = network.float(), in_float32(draws)
    if checkpointed:
        network.checkpoint_blocks()
    with torch.autocast("cpu", dtype):
        rounded = objective.evaluate(network, images.float(), labels, draws).du_dt
        rounded_terms = objective.loss(network, images.float(), labels, draws)
    raw_u, exact_raw_u = rounded_terms.parts["raw_u"].detach(), terms.parts["raw_u"].detach()
    assert rounded_terms.parts["raw_u"].dtype == rounded_terms.total.dtype == torch.float32
    found = gradients(rounded_terms.total * LOSS_SCALE, network)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    scaled_back = torch.cat([g.flatten().double() for g in found.values()]) / LOSS_SCALE
    return {
        "gradient": float((scaled_back - expected).norm() / expected.norm()),
        "du_dt": float((rounded.double() - exact).norm() / exact.norm()),
        "raw_u": float((raw_u.double() - exact_raw_u).norm() / exact_raw_u.norm()),
        "largest_du_dt": float(exact.abs().max()),
        "largest_raw_u": float(exact_raw_u.max()),
    }


# Times below the clip at 0.05, where velocities are 20 times the pixels; du/dt reaches 8e3, 5e5 and 4e6.
GAINS = (1.0, 4.0, 10.0)


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("gain", GAINS)
def test_gradients_at_small_times_are_those_of_float64(derivative, gain):
    found = compare(derivative, time_mean=-4.0, gain=gain)
    assert found["gradient"] < CLOSE
    assert found["du_dt"] < CLOSE
    assert found["raw_u"] < CLOSE
    if gain > 1:
        assert found["largest_du_dt"] > LARGEST
        assert found["largest_raw_u"] > LARGEST


# Velocities are not divided by t here. Larger weights make the derivative of the network without normed queries and
# keys chaotic: at twice these gains bfloat16 is wrong by 40 %.
@pytest.mark.parametrize(("method", "gain"), [("imf", 1.0), ("imf", 4.0), ("meanflow", 0.5)])
@pytest.mark.parametrize("derivative", ["jvp", "dual"])
def test_gradients_of_the_other_methods_are_those_of_float64(derivative, method, gain):
    found = compare(derivative, time_mean=-0.4, gain=gain, method=method)
    assert found["gradient"] < CLOSE
    assert found["du_dt"] < CLOSE
    assert found["raw_u"] < CLOSE


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
def test_usual_times_are_eight_times_as_exact_as_bfloat16(derivative):
    half, brain = (compare(derivative, time_mean=-0.4, gain=1.0, dtype=dtype) for dtype in (torch.half, torch.bfloat16))
    for name in ("gradient", "du_dt"):
        assert half[name] < brain[name] / 4, name  # three bits more: 1 / 8 measured


def test_checkpointed_blocks_have_the_same_errors():
    kept, checkpointed = (compare("dual", -4.0, 4.0, checkpointed=flag) for flag in (False, True))
    # Float32 sums in another order, 3e-7 measured; where such a bit turns the rounding of a float16 number, 3e-3.
    assert checkpointed == pytest.approx(kept, rel=1e-2)


def test_without_scaled_tangents_these_inputs_overflow(monkeypatch):
    monkeypatch.setattr(pmf.net.layers, "scaled", lambda function, x: function(x))
    assert compare("dual", -4.0, 1.0)["gradient"] < CLOSE
    found = compare("dual", -4.0, 4.0)
    assert found["du_dt"] != found["du_dt"], "not a number"


def test_in_bfloat16_scaling_changes_no_bit(monkeypatch):
    found = compare("dual", -4.0, 4.0, dtype=torch.bfloat16)
    monkeypatch.setattr(pmf.net.layers, "scaled", lambda function, x: function(x))
    assert compare("dual", -4.0, 4.0, dtype=torch.bfloat16) == found


def test_the_jvp_is_taken_in_float32():
    images, labels, standard = inputs()
    settings = PixelMeanFlowOptions(time_mean=-4.0)
    draws, network = in_float32(shape_draws(standard, settings, 1.0)), grown(small_network(), 4.0).float()
    z, one = images.float(), torch.ones(len(images))
    conditions = Conditions(t=draws.t, h=draws.t - draws.r, omega=one, t_min=0 * one, t_max=one, labels=labels)
    arguments = (network, create_parameterization("x", 1.0), z, conditions, (300 * z[4:], 0.0, 1.0))
    plain_u, _, plain = jvp_derivative(*arguments)
    with torch.autocast("cpu", torch.float16):
        u, _, du_dt = jvp_derivative(*arguments)
    assert torch.equal(du_dt, plain)
    assert not torch.equal(u, plain_u), "the values are those of half precision"


def block_and_tangent() -> tuple[Block, Rotation, Tensor, Tensor]:
    torch.manual_seed(3)
    block, rotation = (
        Block(width=24, num_heads=2, mlp_width=64),
        Rotation(lambda: grid_angles(12, 3), num_still=1),
    )
    with torch.no_grad():
        block.attention_gate.normal_()
        block.mlp_gate.normal_()
    return block, rotation, torch.randn(3, 10, 24), torch.randn(2, 10, 24)


@pytest.mark.parametrize("exponent", [-60, -20, 17, 20, 60])
def test_a_blocks_tangent_is_linear_to_the_bit_in_powers_of_two(exponent):
    """Far outside float16 on both sides: nothing overflows, and nothing of a small tangent is lost."""
    block, rotation, value, tangent = block_and_tangent()
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        expected = block(Dual(value, tangent), rotation).tangent * 2.0**exponent
        assert torch.equal(block(Dual(value, tangent * 2.0**exponent), rotation).tangent, expected)


def test_each_row_has_its_own_scale():
    """A row that is huge, zero or not finite leaves its neighbour alone, and is not made to look like another."""
    block, rotation, value, tangent = block_and_tangent()
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        alone = block(Dual(value, tangent), rotation).tangent
        for factor in (2.0**50, 0.0, float("inf"), float("nan")):
            other = torch.stack((tangent[0] * factor, tangent[1]))
            found = block(Dual(value, other), rotation).tangent
            assert torch.equal(found[1], alone[1])
            assert torch.isfinite(found[0]).all() == (abs(factor) < float("inf"))
            assert factor != 0 or not found[0].any()


def test_a_linear_map_is_exact_where_float16_is():
    """Small whole numbers times a power of two, through a function that only float16 could spoil."""
    value, tangent = torch.zeros(2, 4), torch.tensor([[1.0, -3.0, 7.0, 0.0], [5.0, 5.0, -2.0, 1.0]])
    for power in (-100, -30, 0, 30, 100):
        with torch.autocast("cpu", torch.float16):
            found = scaled(lambda x: Dual(x.value, x.tangent.half()), Dual(value, tangent * 2.0**power))
        assert torch.equal(found.tangent, tangent * 2.0**power)
