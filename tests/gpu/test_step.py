"""The step on a device: in float64 against the literal one, in half precision, eager and compiled, against float32."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.reference_step import Fault, reference_step
from pmf.flow.draws import StandardDraws
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from tests.flow.small_step import (
    CLASSES,
    EXACT,
    gradients,
    grown,
    in_float32,
    inputs,
    shape_draws,
    small_network,
    worst_relative_error,
)
from tests.gpu.devices import DEVICES, GPU

LOSS_SCALE = 2.0**16
# Of the gradient as one vector. 8 bits a product give 7e-3 on a CPU, 11 bits 8e-4; CUDA's autocast rounds at other
# places (the tangent's scores), and compiled blocks keep float32 between operations.
TOLERANCES = {"bf16": 3e-2, "fp16": 1e-2, "no": 1e-4}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
COMPILED_ON_CPU = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPU needs a C++ compiler (g++)"),
    pytest.mark.filterwarnings("ignore"),  # inductor's own
]


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32, which would round the baseline."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def inputs_on(device: str) -> tuple[Tensor, Tensor, StandardDraws]:
    images, labels, standard = inputs()
    return images.to(device), labels.to(device), dataclasses.replace(standard, normal_e=standard.normal_e.to(device))


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("device", DEVICES)
def test_float64_gradients_are_those_of_the_literal_step(device, derivative):
    images, labels, standard = inputs_on(device)
    settings, network = PixelMeanFlowOptions(derivative=derivative), small_network().to(device)
    objective, draws = PixelMeanFlow(settings, num_classes=CLASSES), shape_draws(standard, settings, 1.0)
    ours = gradients(objective.loss(network, images, labels, draws).total, network)

    def literal(**fault: float) -> dict[str, Tensor]:
        found = reference_step(network, settings, CLASSES, images, labels, standard, Fault(**fault))
        return gradients(found.loss, network)

    assert {gradient.device.type for gradient in ours.values()} == {device}
    assert worst_relative_error(ours, literal()) < EXACT
    assert worst_relative_error(ours, literal(derivative_factor=1.001)) > 1e5 * EXACT


def gradient(
    device: str, precision: str, settings: PixelMeanFlowOptions, gain: float, *, compiled: bool = False
) -> Tensor:
    """Of all parameters, as one vector on the CPU."""
    torch._dynamo.reset()
    images, labels, standard = inputs_on(device)
    network = grown(small_network(), gain).float().to(device)
    if compiled:
        network.compile_blocks()
    objective, draws = PixelMeanFlow(settings, num_classes=CLASSES), in_float32(shape_draws(standard, settings, 1.0))
    with torch.autocast(device, DTYPES.get(precision), enabled=precision in DTYPES):
        total = objective.loss(network, images.float(), labels, draws).total
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    found = gradients(total * scale, network)
    assert {part.dtype for part in found.values()} == {torch.float32}
    return torch.cat([part.flatten().double().cpu() for part in found.values()]) / scale


def error(device: str, precision: str, derivative: str, time_mean: float, gain: float, **form: bool) -> float:
    settings = PixelMeanFlowOptions(derivative=derivative, time_mean=time_mean)
    with exact_float32():
        expected = gradient(device, "no", settings, gain)
        found = gradient(device, precision, settings, gain, **form)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_gradients_are_those_of_float32(device, precision, derivative):
    assert 1e-5 < error(device, precision, derivative, time_mean=-0.4, gain=1.0) < TOLERANCES[precision]


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("device", DEVICES)
def test_float16_holds_at_small_times_and_large_weights(device, derivative):
    """du/dt is 5e5 here, eight times the largest number of float16."""
    assert error(device, "fp16", derivative, time_mean=-4.0, gain=4.0) < TOLERANCES["fp16"]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=COMPILED_ON_CPU), pytest.param("cuda", marks=GPU)])
def test_compiled_gradients_are_those_of_float32(device, precision):
    assert error(device, precision, "dual", time_mean=-0.4, gain=1.0, compiled=True) < TOLERANCES[precision]
