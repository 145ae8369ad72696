"""Muon with bfloat16 products against Muon in float32, and updates that are recorded, on a device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pmf.optim.optimizer import RuleOptimizer
from pmf.optim.symmetric_product import has_kernel, symmetric_product
from pmf.training import captured
from pmf.training.captured import CudaRecorder, Recorder
from tests.gpu.devices import DEVICES, GPU
from tests.optim.reference import normal
from tests.optim.updated import Updated
from tests.recorders import Replaying

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


def recorder_of(device: str) -> Recorder:
    return CudaRecorder() if device == "cuda" else Replaying()


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("device", DEVICES)
def test_recorded_updates_are_those_by_numbers_of_the_host(device, name):
    found = Updated(name, recorder_of(device), device=device).train()
    expected = Updated(name, None, device=device).train().state()
    assert found.update._captured._replay is not None
    for key, tensor in found.state().items():
        # float64, with one more rounding of a product; averages are float32, with two more.
        tolerance = 1e-12 if tensor.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=tolerance, msg=key)


@pytest.mark.parametrize(
    ("device", "sides"),
    [
        ("cpu", (6, 4)),
        pytest.param("cuda", (6, 4), marks=GPU),
        pytest.param("cuda", (528, 784), marks=GPU),  # by the kernel for symmetric products
    ],
)
def test_a_replay_with_bfloat16_products_does_what_was_launched_to_the_bit(device, sides, monkeypatch):
    states = []
    for warm_ups in (captured.WARM_UPS, 10**9):
        monkeypatch.setattr(captured, "WARM_UPS", warm_ups)
        options = {"sides": sides, "blocks": 1, "dtype": torch.float32, "newton_schulz": "bfloat16"}
        states.append(Updated("muon", recorder_of(device), device=device, **options).train().state())
    assert [key for key, tensor in states[0].items() if not torch.equal(tensor, states[1][key])] == []
