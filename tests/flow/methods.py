"""Each method with a small network of its own and its literal step, for tests of what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from benchmarks.reference_improved_mean_flow import improved_mean_flow_step
from benchmarks.reference_mean_flow import mean_flow_step
from benchmarks.reference_step import reference_step
from pmf.flow.average_velocity import AverageVelocityObjective
from pmf.flow.draws import StandardDraws
from pmf.flow.improved_mean_flow import ImprovedMeanFlow
from pmf.flow.mean_flow import MeanFlow
from pmf.flow.options import AverageVelocityOptions, ImprovedMeanFlowOptions, MeanFlowOptions, PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.base import BaseNetwork
from tests.flow.small_step import (
    CLASSES,
    small_diffusion_network,
    small_imf_network,
    small_network,
)

Literal = Callable[[BaseNetwork, Any, Tensor, Tensor, StandardDraws], Tensor]


@dataclass(frozen=True)
class Method:
    """What a test needs of a method.

    Attributes:
        literal: the loss of the literal step of (network, options, images, labels, draws).
        chosen: options that make every part of its step do something.
    """

    kind: type[AverageVelocityObjective[Any]]
    settings: type[AverageVelocityOptions]
    network: Callable[[], BaseNetwork]
    literal: Literal
    chosen: dict[str, Any] = field(default_factory=dict)

    def options(self, **changes: Any) -> Any:
        return self.settings(**(self.chosen | changes))

    def objective(self, options: Any, *, static_shapes: bool = False) -> AverageVelocityObjective[Any]:
        return self.kind(options, num_classes=CLASSES, static_shapes=static_shapes)


def _pmf(network: Any, options: Any, images: Tensor, labels: Tensor, standard: StandardDraws) -> Tensor:
    return reference_step(network, options, CLASSES, images, labels, standard).loss


def _imf(network: Any, options: Any, images: Tensor, labels: Tensor, standard: StandardDraws) -> Tensor:
    return improved_mean_flow_step(network, options, CLASSES, images, labels, standard).loss


def _mean_flow(network: Any, options: Any, images: Tensor, labels: Tensor, standard: StandardDraws) -> Tensor:
    return mean_flow_step(network, options, CLASSES, images, labels, standard).loss


METHODS = {
    "pmf": Method(PixelMeanFlow, PixelMeanFlowOptions, small_network, _pmf),
    "imf": Method(ImprovedMeanFlow, ImprovedMeanFlowOptions, small_imf_network, _imf),
    "meanflow": Method(
        MeanFlow,
        MeanFlowOptions,
        small_diffusion_network,
        _mean_flow,
        # Half of the rows with a tangent, and both of the network's own velocities.
        {"data_proportion": 0.5, "guidance_scale": 2.0, "guidance_mixing": 0.5},
    ),
}

PADDED = METHODS | {"pmf": replace(METHODS["pmf"], network=lambda: small_network(mlp_width=61))}
"""The same, but for a SwiGLU of a width that its layer fills up with zeros."""
