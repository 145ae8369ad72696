"""How many rows each pass of the network has: those that something asks for, and no others."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from pmf.flow.average_velocity import AverageVelocityObjective
from pmf.flow.improved_mean_flow import ImprovedMeanFlow
from pmf.flow.mean_flow import MeanFlow
from pmf.flow.options import ImprovedMeanFlowOptions, MeanFlowOptions
from tests.flow.small_step import (
    CLASSES,
    ROWS,
    inputs,
    small_diffusion_network,
    small_imf_network,
    with_drops,
)


class Pass(NamedTuple):
    """One call of the network."""

    rows: int
    heads: str
    tangents: int
    with_gradient: bool
    without_label: int
    """Rows with the null label."""


class Counting(nn.Module):
    """Passes each call on and notes it."""

    carries_tangents = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.heads = network, network.heads
        self.passes: list[Pass] = []

    def forward(self, z, conditions, heads="uv", tangent=None):
        null = int((conditions.labels == CLASSES).sum())
        with_gradient = torch.is_grad_enabled() and any(p.requires_grad for p in self.network.parameters())
        tangents = 0 if tangent is None else len(tangent.z)
        self.passes.append(Pass(len(z), heads, tangents, with_gradient, null))
        return self.network(z, conditions, heads=heads, **({} if tangent is None else {"tangent": tangent}))


def passes_of(objective: AverageVelocityObjective[Any], network: nn.Module, dropped: int) -> list[Pass]:
    images, labels, standard = inputs()
    counting = Counting(network)
    objective.loss(counting, images, labels, objective.shape(with_drops(standard, dropped)))
    return counting.passes


# The rows of small_step have t = 0.75 0.52 0.49 0.22 0.21 0.62 (flow matching) 0.54 0.19 (not); two labels are dropped.
# In [0.2, 0.6] lie four flow-matching rows, of which one (0.52) loses its label, and one other.
GUIDED, GUIDED_OTHERS, KAPPA = 4, 1, {"guidance_mixing": 0.5}


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize(
    ("guidance", "without_label", "with_label", "most"),
    [
        ({}, 0, 0, 0),
        ({"guidance_scale": 2.0}, GUIDED, 0, ROWS),
        ({"guidance_scale": 2.0, **KAPPA}, GUIDED, GUIDED_OTHERS, ROWS + 2),
        ({"guidance_scale": 0.5, **KAPPA}, 0, GUIDED_OTHERS, 2),  # 1 - omega - kappa is 0
    ],
    ids=["no guidance", "kappa 0", "kappa 0.5", "omega + kappa = 1"],
)
def test_mean_flow_asks_for_guided_rows_alone(guidance, without_label, with_label, most, static_shapes):
    settings = MeanFlowOptions(guidance_interval=(0.2, 0.6), **guidance)
    objective = MeanFlow(settings, num_classes=CLASSES, static_shapes=static_shapes)
    *guiding, training = passes_of(objective, small_diffusion_network(), dropped=2)
    assert training == Pass(ROWS, "u", tangents=2, with_gradient=True, without_label=2)
    rows = most if static_shapes else without_label + with_label
    expected = Pass(rows, "u", tangents=0, with_gradient=False, without_label=without_label)
    assert guiding == ([expected] if rows else [])


MEAN_FLOW = MeanFlow(MeanFlowOptions(guidance_scale=2.0, **KAPPA), num_classes=CLASSES)
ALL_FLOW_MATCHING = ImprovedMeanFlow(ImprovedMeanFlowOptions(data_proportion=1.0), num_classes=CLASSES)


@pytest.mark.parametrize(
    ("objective", "create"),
    [(MEAN_FLOW, small_diffusion_network), (ALL_FLOW_MATCHING, small_imf_network)],
    ids=["meanflow", "imf"],
)
def test_a_guidance_pass_that_nothing_asks_for_has_two_rows(objective, create):
    """In shards, all ranks have to run the same passes, and others may have rows in it."""
    guiding, training = passes_of(objective, create(), dropped=ROWS)
    assert training.without_label == ROWS
    assert (guiding.rows, guiding.with_gradient) == (2, False)


def test_the_derivative_by_jvp_runs_its_rows_a_second_time_and_no_others():
    objective = MeanFlow(MeanFlowOptions(derivative="jvp"), num_classes=CLASSES)
    training, derivative = passes_of(objective, small_diffusion_network(), dropped=2)
    assert (training.rows, derivative.rows, derivative.heads) == (ROWS, 2, "u")


def test_improved_mean_flow_asks_for_v_c_off_the_flow_matching_rows_and_v_u_of_guided_ones():
    objective = ImprovedMeanFlow(ImprovedMeanFlowOptions(), num_classes=CLASSES)
    _, _, standard = inputs()
    guided = len(objective.shape(with_drops(standard, 2)).unconditional_rows)
    assert ROWS / 2 - 2 <= guided <= ROWS - 2
    guiding, training = passes_of(objective, small_imf_network(), dropped=2)
    assert guiding == Pass(4 + guided, "v", tangents=0, with_gradient=False, without_label=guided)
    assert training == Pass(ROWS, "uv", tangents=4, with_gradient=True, without_label=2)
