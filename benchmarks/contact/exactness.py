"""Is the arithmetic right on this device? Gradients in float64 and in low precision, and Muon in bfloat16."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.contact.setting import NUM_CLASSES, Measurements, Report, Setting, milliseconds
from benchmarks.contact.steps import random_perceptual
from benchmarks.step_variants import gradient_error
from pmf.distributed.world import set_float32_precision
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.optim.groups import create_optimizer
from pmf.optim.muon import orthogonalize
from pmf.optim.options import OptimizerConfig
from pmf.perceptual.distances import create_distances


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One way to take the step."""

    autocast: torch.dtype | None = None
    compiled: bool = False


# Each against float32, eager.
PRECISIONS = {
    "bf16 eager": Precision(autocast=torch.bfloat16),
    "fp16 eager, scaled": Precision(autocast=torch.float16),
    "float32 compiled": Precision(compiled=True),
    "bf16 compiled": Precision(autocast=torch.bfloat16, compiled=True),
}
FIRST_SCALE = 2.0**16  # of the loss in fp16, as torch's scaler begins


def float64_gradients(setting: Setting, report: Report) -> None:
    """Largest relative difference of any gradient of a small network to the literal step's, in float64."""
    for variant in ("jvp", "dual"):
        report(**{f"{variant}, largest relative error": gradient_error(variant, setting.device)})


def low_precision_gradients(setting: Setting, report: Report) -> None:
    """Gradients of the model on one micro-batch in each precision, against float32 without TF32."""
    set_float32_precision(tf32=False)
    micro_batch = MicroBatch(setting)
    expected = micro_batch.gradients(Precision())
    report(images=setting.sizes.few_images)
    for name, precision in PRECISIONS.items():
        if precision.compiled and not setting.on_gpu:
            report(**{name: "needs CUDA (on a CPU this would measure the C++ compiler)"})
            continue
        graphs = counters["stats"]["unique_graphs"]
        found = micro_batch.gradients(precision)
        errors = relative_errors(found, expected)
        if precision.compiled:
            errors["graphs"] = counters["stats"]["unique_graphs"] - graphs
        report(**{name: errors})
        gc.collect()


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Of every parameter, float32, and what the loss was multiplied with to take them."""

    loss: float
    by_name: dict[str, Tensor]
    scale: float


class MicroBatch:
    """The same images, labels, draws and weights for every precision."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.objective = PixelMeanFlow(PixelMeanFlowOptions(), num_classes=NUM_CLASSES)
        rows, side = setting.sizes.few_images, setting.image_size
        generator = torch.Generator().manual_seed(0)
        self.images = (torch.rand(rows, 3, side, side, generator=generator) * 2 - 1).to(setting.device)
        self.labels = torch.randint(NUM_CLASSES, (rows,), generator=generator).to(setting.device)
        self.draws = self.objective.draw(self.images, generator)

    def gradients(self, precision: Precision) -> Gradients:
        """Taken with the loss scaled, in fp16, by the largest power of two at which all are finite."""
        network = self.setting.network()
        objective = PixelMeanFlow(PixelMeanFlowOptions(), num_classes=NUM_CLASSES)
        if precision.compiled:
            network.compile_blocks()
            objective.compile_losses()
        names, parameters = zip(*network.named_parameters(), strict=True)
        scale = FIRST_SCALE if precision.autocast is torch.float16 else 1.0
        while True:
            with torch.autocast(self.setting.device, precision.autocast, enabled=precision.autocast is not None):
                loss = objective.loss(network, self.images, self.labels, self.draws).total
            found = torch.autograd.grad(loss * scale, parameters)
            if scale == 1.0 or all(bool(gradient.isfinite().all()) for gradient in found):
                by_name = {name: gradient.float() / scale for name, gradient in zip(names, found, strict=True)}
                return Gradients(loss=float(loss.detach()), by_name=by_name, scale=scale)
            scale /= 2


def relative_errors(found: Gradients, expected: Gradients) -> Measurements:
    """Of all gradients as one vector, and of the parameter that is furthest off; in Euclidean norms."""
    errors = {
        name: float((found.by_name[name] - gradient).norm() / gradient.norm().clamp_min(1e-30))
        for name, gradient in expected.by_name.items()
    }
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))  # NaN is worst of all
    difference = _norm([found.by_name[name] - gradient for name, gradient in expected.by_name.items()])
    return {
        "relative_error": difference / _norm(list(expected.by_name.values())),
        "largest_of_a_parameter": errors[worst],
        "that_parameter": worst,
        "loss": found.loss,
        "loss_float32": expected.loss,
        "loss_scale": found.scale,
    }


def perceptual_gradients(setting: Setting, report: Report) -> None:
    """Gradients of both perceptual distances by the image, compiled and in bfloat16, against float32 and eager."""
    set_float32_precision(tf32=False)
    sizes, generator = setting.sizes, torch.Generator().manual_seed(0)
    shape = (sizes.few_images, 3, setting.image_size, setting.image_size)
    prediction, image = ((torch.rand(shape, generator=generator) * 2 - 1).to(setting.device) for _ in range(2))
    uniforms = torch.rand(sizes.few_images, 4, generator=generator).to(setting.device)
    config = random_perceptual(setting)

    def gradients(precision: Precision) -> dict[str, Tensor]:
        distances = create_distances(config, torch.device(setting.device), print)
        assert distances is not None, "two were asked for"
        if precision.compiled:
            distances.compile_networks()
        leaf = prediction.clone().requires_grad_()
        with torch.autocast(setting.device, precision.autocast, enabled=precision.autocast is not None):
            found = distances(leaf, image, uniforms)
        return {name: torch.autograd.grad(d.sum(), leaf, retain_graph=True)[0] for name, d in found.items()}

    expected = gradients(Precision())
    for name, precision in PRECISIONS.items():
        if "fp16" in name or (precision.compiled and not setting.on_gpu):
            continue
        found = gradients(precision)
        errors = {key: float((found[key] - value).norm() / value.norm()) for key, value in expected.items()}
        report(**{name: errors})


def muon_in_bfloat16(setting: Setting, report: Report) -> None:
    """Muon's step with products in bfloat16 against float32, on random gradients: how far apart, and how long."""
    start = setting.network()
    generator = torch.Generator(setting.device).manual_seed(0)
    for parameter in start.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, device=setting.device)
    before = [parameter.detach().clone() for parameter in start.parameters()]
    moved: dict[str, list[Tensor]] = {}
    for precision in ("float32", "bfloat16"):
        network = copy.deepcopy(start)
        for parameter, original in zip(network.parameters(), start.parameters(), strict=True):
            parameter.grad = original.grad
        optimizer = create_optimizer(network, OptimizerConfig(newton_schulz=precision))
        optimizer.step()
        moved[precision] = [p.detach() - b for p, b in zip(network.parameters(), before, strict=True)]
        times = milliseconds(optimizer.step, setting.device, repeats=setting.sizes.repeats)
        report(**{f"{precision}, step": times})
    difference = [a - b for a, b in zip(moved["bfloat16"], moved["float32"], strict=True)]
    report(relative_difference_of_the_step=_norm(difference) / _norm(moved["float32"]))
    muon = next(group for group in optimizer.param_groups if group["kind"] == "muon")
    matrices = {tuple(parameter.shape): parameter.grad for parameter in muon["params"]}
    for shape, gradient in matrices.items():
        values = torch.linalg.svdvals(orthogonalize(gradient, dtype=torch.bfloat16))
        report(**{f"singular values {shape[0]} x {shape[1]}": [float(values.min()), float(values.max())]})


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())
