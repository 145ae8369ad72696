"""The way in which layers run on GPUs gives the numbers of the way in which they run on CPUs."""

from __future__ import annotations

import pytest
import torch

from pmf.net import products
from pmf.net.dual import Linear
from pmf.net.layers import SwiGLU
from pmf.net.positions import Rotation, sequence_angles
from tests.flow.methods import METHODS
from tests.flow.small_step import EXACT, gradients, inputs, worst_relative_error


@pytest.fixture
def as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "suits_gpus", lambda _: True)


@pytest.mark.usefixtures("as_on_gpus")
@pytest.mark.parametrize("derivative", ["dual", "jvp"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_those_of_the_literal_step(method, derivative):
    images, labels, standard = inputs()
    chosen = METHODS[method]
    options, network = chosen.options(derivative=derivative), chosen.network()
    objective = chosen.objective(options)
    ours = objective.loss(network, images, labels, objective.shape(standard)).total
    theirs = chosen.literal(network, options, images, labels, standard)
    assert worst_relative_error(gradients(ours, network), gradients(theirs, network)) < EXACT


@pytest.mark.usefixtures("as_on_gpus")
def test_layers_of_other_widths_and_with_padding_are_told_apart():
    wide, narrow = Linear(6, 5, bias=False, extra_out=3), Linear(6, 2, bias=False)
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    for part, layer in zip(products.project(x, wide, narrow), (wide, narrow), strict=True):
        # float32, sums of six terms of size 1
        torch.testing.assert_close(part, layer(x), rtol=0, atol=1e-6)


def test_bfloat16_rounds_the_same(monkeypatch):
    """One product or two: each number is the same sum, and is rounded once."""
    mlp = SwiGLU(64, 170)
    x = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        alone = mlp(x)
        monkeypatch.setattr(products, "suits_gpus", lambda _: True)
        merged = mlp(x)
    # A sum in another order may be rounded to the next bfloat16: 2^-8 of numbers below 0.25.
    torch.testing.assert_close(merged, alone, rtol=0, atol=2**-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_both_rotations_are_equal(dtype, monkeypatch):
    rotation = Rotation(lambda: sequence_angles(8, 5), num_still=2)
    x = torch.randn(3, 7, 2, 8, generator=torch.Generator().manual_seed(2))
    usual = rotation(x, dtype)
    monkeypatch.setattr(products, "suits_gpus", lambda _: True)
    tokens_first = rotation(x, dtype)
    assert torch.equal(tokens_first, usual)
    assert tokens_first.transpose(1, 2).is_contiguous()
