"""Maps between outputs, velocities and images are inverse to each other where they should be."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.parameterization import (
    MIN_TIME,
    PARAMETERIZATIONS,
    SIGMA_DATA,
    PreconditionedPrediction,
    create_parameterization,
    edm_coefficients,
    linear_coefficients,
    per_image,
    scm_coefficients,
)

NOISE_SCALE = 2.0
IMAGE_PREDICTIONS = [name for name in PARAMETERIZATIONS if name != "u"]
PRECONDITIONED = ["linear", "edm", "scm"]
EXACT = 1e-13  # float64, a few products and one division by 0.06 at the least: 9.7e-15 at worst


def tensors() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, e, output = torch.randn(3, 6, 3, 4, 4, generator=generator, dtype=torch.float64)
    e = e * NOISE_SCALE
    t = torch.tensor([1.0, 0.7, 0.3, 0.06, 0.04, 0.0], dtype=torch.float64)
    z = (1 - t)[:, None, None, None] * x + t[:, None, None, None] * e
    return x, e, output, z, t


def test_every_name_of_the_config_is_in_the_table():
    assert set(get_args(PixelMeanFlowOptions.model_fields["parameterization"].annotation)) == set(PARAMETERIZATIONS)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_velocity_and_image_agree_above_the_clip(name):
    _, _, output, z, t = tensors()
    parameterization = PARAMETERIZATIONS[name](NOISE_SCALE)
    velocity, image = parameterization.to_velocity(output, z, t), parameterization.to_image(output, z, t)
    above = t >= MIN_TIME
    torch.testing.assert_close((z - t[:, None, None, None] * velocity)[above], image[above], atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_the_true_velocity_is_noise_minus_image_above_the_clip(name):
    x, e, _, z, t = tensors()
    above = t >= MIN_TIME
    true = PARAMETERIZATIONS[name](NOISE_SCALE).true_velocity(x, e, z, t)
    torch.testing.assert_close(true[above], (e - x)[above], atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", IMAGE_PREDICTIONS)
def test_below_the_clip_an_image_is_divided_by_the_clip(name):
    x, e, output, z, t = tensors()
    parameterization = PARAMETERIZATIONS[name](NOISE_SCALE)
    below = t < MIN_TIME
    assert below.sum() == 2
    expected = (z - parameterization.to_image(output, z, t)) / MIN_TIME
    assert torch.equal(parameterization.to_velocity(output, z, t)[below], expected[below])
    assert torch.equal(parameterization.true_velocity(x, e, z, t)[below], ((z - x) / MIN_TIME)[below])


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_the_output_that_solves_for_the_true_image_has_the_true_velocity(name):
    x, e, _, z, t = (tensor[:-1] for tensor in tensors())  # at t = 0 the output does not matter
    parameterization = create_parameterization(name, NOISE_SCALE)
    assert isinstance(parameterization, PreconditionedPrediction)
    coefficients = parameterization.coefficients(t)
    target = (x - per_image(coefficients.skip) * z) / per_image(coefficients.out)
    torch.testing.assert_close(parameterization.to_image(target, z, t), x, atol=EXACT, rtol=0)
    velocity = parameterization.to_velocity(target, z, t)
    torch.testing.assert_close(velocity, parameterization.true_velocity(x, e, z, t), atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_a_preconditioner_returns_its_input_at_no_noise_and_ignores_it_at_full_noise(name):
    _, _, output, z, t = tensors()
    image = PARAMETERIZATIONS[name](NOISE_SCALE).to_image(output, z, t)
    scale = {"linear": 1.0, "edm": SIGMA_DATA, "scm": -SIGMA_DATA}[name]
    torch.testing.assert_close(image[-1], z[-1], atol=EXACT, rtol=0)
    torch.testing.assert_close(image[0], scale * output[0], atol=EXACT, rtol=0)


def test_the_linear_preconditioner_predicts_input_minus_velocity():
    _, _, output, z, t = tensors()
    velocity = PARAMETERIZATIONS["linear"](NOISE_SCALE).to_velocity(output, z, t)
    above = t >= MIN_TIME
    torch.testing.assert_close(velocity[above], (z - output)[above], atol=EXACT, rtol=0)
    assert linear_coefficients(t).skip.tolist() == (1 - t).tolist()


@pytest.mark.parametrize("noise_scale", [1.0, 4.0])
def test_edms_target_has_unit_variance_and_is_amplified_least(noise_scale):
    """What EDM derives its coefficients from (appendix B.6), for images of standard deviation sigma_data."""
    t = torch.linspace(0.01, 1.0, 100, dtype=torch.float64)
    ours = edm_coefficients(t, noise_scale)

    def target_variance(skip: Tensor) -> Tensor:
        """Of c_out F = x - c_skip z."""
        return (1 - skip * (1 - t)).square() * SIGMA_DATA**2 + (skip * t * noise_scale).square()

    torch.testing.assert_close(target_variance(ours.skip), ours.out.square(), atol=0, rtol=1e-12)  # 5.1e-16 at worst
    assert bool((target_variance(ours.skip) < target_variance(ours.skip + 1e-4)).all())
    assert bool((target_variance(ours.skip) < target_variance(ours.skip - 1e-4)).all())


def test_scms_coefficients_at_known_angles():
    t = torch.tensor([0.0, 1 / 3, 0.5, 1.0], dtype=torch.float64)
    coefficients = scm_coefficients(t)
    root = 0.5**0.5
    expected = torch.tensor([[1.0, 0.75**0.5, root, 0.0], [0.0, -0.25, -0.5 * root, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack((coefficients.skip, coefficients.out)), expected, atol=EXACT, rtol=0)


def test_trigflow_moved_exactly_to_this_path_is_edm_but_for_the_sign():
    """Why the scm pre-conditioner keeps an angle proportional to t."""
    t = torch.linspace(0.0, 0.99, 100, dtype=torch.float64)
    angle = torch.atan(t * NOISE_SCALE / ((1 - t) * SIGMA_DATA))
    # TrigFlow's own noisy image is cos(angle) (x + tan(angle) sigma_data n) = cos(angle) / (1 - t) z.
    skip, out = angle.cos() * angle.cos() / (1 - t), -SIGMA_DATA * angle.sin()
    edm = edm_coefficients(t, NOISE_SCALE)
    # cos(atan) near t = 0.99 loses two digits: 8.4e-14 at worst
    torch.testing.assert_close(skip, edm.skip, atol=0, rtol=1e-11)
    torch.testing.assert_close(out, -edm.out, atol=0, rtol=1e-11)
