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
from tests.flow.methods import METHODS
from tests.flow.small_step import (
    CLASSES,
    EXACT,
    gradients,
    grown,
    in_float32,
    inputs,
    small_network,
    worst_relative_error,
)
from tests.gpu.devices import DEVICES, GPU

LOSS_SCALE = 2.0**16
# Of the gradient as one vector. 8 bits a product give 7e-3 on a CPU, 11 bits 8e-4; CUDA's autocast rounds at other
# places (the tangent's scores), and compiled blocks keep float32 between operations.
TOLERANCES = {"bf16": 3e-2, "fp16": 1e-2, "no": 1e-4}
# Larger weights make the derivative of MeanFlow's network, whose queries and keys are not normed, chaotic.
GAINS = {"pmf": 1.0, "imf": 1.0, "meanflow": 0.5}
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
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
def test_float64_gradients_are_those_of_the_literal_step(device, method, derivative):
    images, labels, standard = inputs_on(device)
    chosen = METHODS[method]
    settings, network = chosen.options(derivative=derivative), chosen.network().to(device)
    objective = chosen.objective(settings)
    ours = gradients(objective.loss(network, images, labels, objective.shape(standard)).total, network)
    literal = gradients(chosen.literal(network, settings, images, labels, standard), network)
    assert {gradient.device.type for gradient in ours.values()} == {device}
    assert worst_relative_error(ours, literal) < EXACT


@pytest.mark.parametrize("device", DEVICES)
def test_the_comparison_notices_a_fault_of_a_thousandth(device):
    images, labels, standard = inputs_on(device)
    settings, network = PixelMeanFlowOptions(), small_network().to(device)
    objective = METHODS["pmf"].objective(settings)
    ours = gradients(objective.loss(network, images, labels, objective.shape(standard)).total, network)
    fault = Fault(derivative_factor=1.001)
    wrong = gradients(reference_step(network, settings, CLASSES, images, labels, standard, fault).loss, network)
    assert worst_relative_error(ours, wrong) > 1e5 * EXACT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A step whose gradient is compared; ``gain`` enlarges the weights of the network."""

    method: str = "pmf"
    derivative: str = "dual"
    time_mean: float = -0.4
    gain: float = 1.0


def gradient(device: str, precision: str, case: Case, *, compiled: bool = False) -> Tensor:
    """Of all parameters, as one vector on the CPU."""
    torch._dynamo.reset()
    images, labels, standard = inputs_on(device)
    chosen = METHODS[case.method]
    network = grown(chosen.network(), case.gain).float().to(device)
    objective = chosen.objective(chosen.options(derivative=case.derivative, time_mean=case.time_mean))
    if compiled:
        network.compile_blocks()
        objective.compile_losses()
    draws = in_float32(objective.shape(standard))
    with torch.autocast(device, DTYPES.get(precision), enabled=precision in DTYPES):
        total = objective.loss(network, images.float(), labels, draws).total
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    found = gradients(total * scale, network)
    assert {part.dtype for part in found.values()} == {torch.float32}
    return torch.cat([part.flatten().double().cpu() for part in found.values()]) / scale


def error(device: str, precision: str, case: Case, *, compiled: bool = False) -> float:
    """Relative, to the same in float32 and eager."""
    with exact_float32():
        expected = gradient(device, "no", case)
        found = gradient(device, precision, case, compiled=compiled)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_gradients_are_those_of_float32(device, method, precision, derivative):
    case = Case(method=method, derivative=derivative, gain=GAINS[method])
    assert 1e-5 < error(device, precision, case) < TOLERANCES[precision]


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("device", DEVICES)
def test_float16_holds_at_small_times_and_large_weights(device, derivative):
    """du/dt is 5e5 here, eight times the largest number of float16."""
    case = Case(derivative=derivative, time_mean=-4.0, gain=4.0)
    assert error(device, "fp16", case) < TOLERANCES["fp16"]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=COMPILED_ON_CPU), pytest.param("cuda", marks=GPU)])
def test_compiled_gradients_are_those_of_float32(device, method, precision):
    case = Case(method=method, gain=GAINS[method])
    assert error(device, precision, case, compiled=True) < TOLERANCES[precision]
