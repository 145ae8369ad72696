"""Maps between outputs, velocities and images are inverse to each other where they should be."""

from __future__ import annotations

import pytest
import torch

from pmf.flow.parameterization import MIN_TIME, PARAMETERIZATIONS


def tensors() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, e, output = torch.randn(3, 6, 3, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([1.0, 0.7, 0.3, 0.06, 0.04, 0.0], dtype=torch.float64)
    z = (1 - t)[:, None, None, None] * x + t[:, None, None, None] * e
    return x, e, output, z, t


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_velocity_and_image_agree_above_the_clip(name):
    _, _, output, z, t = tensors()
    parameterization = PARAMETERIZATIONS[name]
    velocity, image = parameterization.to_velocity(output, z, t), parameterization.to_image(output, z, t)
    above = t >= MIN_TIME
    # float64, one subtraction and one division
    torch.testing.assert_close((z - t[:, None, None, None] * velocity)[above], image[above], atol=1e-13, rtol=0)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_the_true_velocity_is_noise_minus_image_above_the_clip(name):
    x, e, _, z, t = tensors()
    above = t >= MIN_TIME
    true = PARAMETERIZATIONS[name].true_velocity(x, e, z, t)
    torch.testing.assert_close(true[above], (e - x)[above], atol=1e-13, rtol=0)


def test_below_the_clip_an_image_prediction_is_divided_by_the_clip():
    x, e, output, z, t = tensors()
    parameterization = PARAMETERIZATIONS["x"]
    below = t < MIN_TIME
    assert below.sum() == 2
    expected = (z - output) / MIN_TIME
    assert torch.equal(parameterization.to_velocity(output, z, t)[below], expected[below])
    assert torch.equal(parameterization.true_velocity(x, e, z, t)[below], ((z - x) / MIN_TIME)[below])
