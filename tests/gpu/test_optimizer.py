"""Muon with bfloat16 products against Muon in float32, on a device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pmf.optim.optimizer import RuleOptimizer
from pmf.optim.symmetric_product import has_kernel, symmetric_product
from tests.gpu.devices import DEVICES, GPU
from tests.optim.reference import normal

SHAPES = ((96, 64), (96, 64), (64, 96), (64, 64))
STEPS, RATE = 3, 1e-2


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_steps_are_those_of_float32(device):
    generator = torch.Generator().manual_seed(0)
    start = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES).to(device)
    gradients = [[torch.randn(shape, generator=generator).to(device) for shape in SHAPES] for _ in range(STEPS)]
    moved = {}
    for dtype in (torch.bfloat16, None):
        weights = copy.deepcopy(start)
        optimizer = RuleOptimizer([{"kind": "muon", "params": weights}], lr=RATE, newton_schulz_dtype=dtype)
        for of_step in gradients:
            for weight, gradient in zip(weights, of_step, strict=True):
                weight.grad = gradient
            optimizer.step()
        moved[dtype] = [(weight - before).detach() for weight, before in zip(weights, start, strict=True)]
        assert {weight.dtype for weight in weights} == {torch.float32}
    for half, single in zip(moved[torch.bfloat16], moved[None], strict=True):
        # Five polynomials of 8-bit products; 1.3e-2 on a CPU. 1e-5 would be float32 under another name.
        error = float((half - single).norm() / single.norm())
        assert 1e-5 < error < 5e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 768, 2048), (2, 528, 784), (1, 1024, 1024)])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_the_kernel_of_symmetric_products_gives_torchs_products(device, shape, dtype):
    for x in (normal(*shape), normal(shape[0], shape[2], shape[1]).mT):
        x = (x / shape[2] ** 0.5).to(device, dtype)
        assert has_kernel(x)
        gram = symmetric_product(x, None, 1.0, 0.0)
        found = symmetric_product(gram, gram, 2.0315, -4.7750)
        exact_gram = x.double() @ x.double().mT
        exact = 2.0315 * gram.double() @ gram.double() - 4.7750 * gram.double()
        rounding = torch.finfo(dtype).eps / 2
        for ours, expected in ((gram, exact_gram), (found, exact)):
            assert torch.equal(ours, ours.mT)
            # One rounding of each entry; sums in float32 of numbers of this size add much less.
            assert float((ours - expected).norm() / expected.norm()) < rounding
