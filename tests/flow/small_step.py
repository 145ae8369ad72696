"""A step small enough for float64: network, inputs, draws, and how gradients are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from pmf.flow.draws import Draws, StandardDraws, draw_standard
from pmf.flow.options import AverageVelocityOptions, PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.diffusion_transformer import DiffusionTransformer
from pmf.net.imf_transformer import ImfTransformer
from pmf.net.pixel_transformer import PixelTransformer

N = TypeVar("N", bound=nn.Module)


class LiteralStep(Protocol):
    """What the literal steps of benchmarks/ have in common."""

    @property
    def loss(self) -> Tensor: ...


S = TypeVar("S", bound=LiteralStep)

ROWS, CLASSES = 8, 5
SHAPE = {"image_size": 8, "patch_size": 2, "channels": 3, "num_classes": CLASSES}
# float64 through two orders of summation: 4e-14 at worst over the cases of the tests; the smallest of the faults gives
# 3e-4.
EXACT = 1e-9


def small_network(mlp_width: int | None = None) -> PixelTransformer:
    """pMF's."""
    return randomised(
        PixelTransformer(**SHAPE, width=24, depth=3, head_depth=1, num_heads=2, mlp_width=mlp_width), seed=1
    )


def small_imf_network() -> ImfTransformer:
    """iMF's."""
    return randomised(ImfTransformer(**SHAPE, width=24, depth=3, head_depth=1, num_heads=2), seed=1)


def small_diffusion_network() -> DiffusionTransformer:
    """MeanFlow's."""
    return randomised(DiffusionTransformer(**SHAPE, width=24, depth=2, num_heads=2), seed=1)


def randomised(network: N, seed: int) -> N:
    """In float64, every parameter random, gates and output layers too: at the usual start most gradients vanish."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.double().named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.3 * noise)
    return network


def inputs(rows: int = ROWS) -> tuple[Tensor, Tensor, StandardDraws]:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(rows, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    return images, labels, draw_standard(images, generator)


def shape_draws(standard: StandardDraws, settings: PixelMeanFlowOptions, perceptual_max_t: float) -> Draws:
    """The distributions of pMF with these settings."""
    return PixelMeanFlow(settings, num_classes=CLASSES, perceptual_max_t=perceptual_max_t).shape(standard)


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def worst_relative_error(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


def key_of(settings: AverageVelocityOptions, standard: StandardDraws, fault: Mapping[str, float]) -> Hashable:
    """All that a literal step on :func:`inputs` depends on: not on how our step takes the derivative."""
    numbers = tuple(tensor.numpy().tobytes() for tensor in vars(standard).values())
    return settings.model_dump_json(exclude={"derivative"}), numbers, tuple(fault.items())


def computed_once(
    known: dict[Hashable, tuple[S, dict[str, Tensor]]],
    key: Hashable,
    network: nn.Module,
    literal: Callable[[nn.Module, Tensor, Tensor], S],
) -> tuple[S, dict[str, Tensor]]:
    """A literal step on the images and labels of :func:`inputs`, and the gradients of its loss."""
    if key not in known:
        images, labels, _ = inputs()
        step = literal(network, images, labels)
        known[key] = step, gradients(step.loss, network)
    return known[key]


def with_drops(standard: StandardDraws, count: int) -> StandardDraws:
    return dataclasses.replace(standard, uniform_drop=(torch.arange(len(standard.uniform_drop)) >= count).double())


def in_float32(draws: Draws) -> Draws:
    numbers = {k: v for k, v in vars(draws).items() if isinstance(v, Tensor) and v.is_floating_point()}
    return dataclasses.replace(draws, **{name: value.float() for name, value in numbers.items()})


def grown(network: N, gain: float) -> N:
    """Larger weights, as of a network that has trained for long, so that tangents grow from block to block."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.mul_(gain)
    return network
