"""MeanFlow's and iMF's steps equal the literal ones of benchmarks/ in float64, gradient by gradient.

The loss value hides errors (the adaptive weight pins it), so every comparison is over fields and gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.reference_improved_mean_flow import (
    ImprovedMeanFlowFault,
    ImprovedMeanFlowStep,
    improved_mean_flow_step,
)
from benchmarks.reference_mean_flow import MeanFlowFault, MeanFlowStep, mean_flow_step
from pmf.flow.draws import StandardDraws
from pmf.flow.improved_mean_flow import ImprovedMeanFlow
from pmf.flow.mean_flow import MeanFlow
from pmf.flow.options import ImprovedMeanFlowOptions, MeanFlowOptions
from tests.flow.small_step import (
    CLASSES,
    EXACT,
    ROWS,
    computed_once,
    gradients,
    inputs,
    key_of,
    small_diffusion_network,
    small_imf_network,
    with_drops,
    worst_relative_error,
)

# The comparisons of filled passes take the default, auto.
DERIVATIVES = ["jvp", "dual"]
# The rows of small_step have t = 0.75 0.52 0.49 0.22 0.21 0.62 0.54 0.19, so that the intervals cut them.
GUIDANCE: dict[str, dict[str, Any]] = {
    "none": {},
    "kappa 0": {"guidance_scale": 3.0},
    "kappa 0 in an interval": {"guidance_scale": 3.0, "guidance_interval": (0.1, 0.6)},
    "kappa 0.5": {"guidance_scale": 1.0, "guidance_mixing": 0.5},
    "kappa 0.5 in an interval": {"guidance_scale": 2.0, "guidance_mixing": 0.5, "guidance_interval": (0.45, 0.7)},
    "no v_uncond": {"guidance_scale": 0.2, "guidance_mixing": 0.8},
}


def close(ours: Tensor, theirs: Tensor, name: str) -> None:
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=EXACT, atol=EXACT, msg=name)


MEAN_FLOW: dict[Hashable, tuple[MeanFlowStep, dict[str, Tensor]]] = {}
IMPROVED: dict[Hashable, tuple[ImprovedMeanFlowStep, dict[str, Tensor]]] = {}


def literal_mean_flow(
    settings: MeanFlowOptions, standard: StandardDraws, **fault: Any
) -> tuple[MeanFlowStep, dict[str, Tensor]]:
    """The literal step and its gradients, computed once for all ways to take ours."""
    told = MeanFlowFault(**fault)
    return computed_once(
        MEAN_FLOW,
        key_of(settings, standard, fault),
        small_diffusion_network(),
        lambda network, x, y: mean_flow_step(network, settings, CLASSES, x, y, standard, told),
    )


def literal_improved(
    settings: ImprovedMeanFlowOptions, standard: StandardDraws, **fault: Any
) -> tuple[ImprovedMeanFlowStep, dict[str, Tensor]]:
    """The same for iMF."""
    told = ImprovedMeanFlowFault(**fault)
    return computed_once(
        IMPROVED,
        key_of(settings, standard, fault),
        small_imf_network(),
        lambda network, x, y: improved_mean_flow_step(network, settings, CLASSES, x, y, standard, told),
    )


def compare_mean_flow(
    settings: MeanFlowOptions, standard: StandardDraws, *, static_shapes: bool = False, **fault: Any
) -> float:
    """Worst relative difference of a gradient; without a fault the fields are compared too."""
    images, labels, _ = inputs()
    network = small_diffusion_network()
    objective = MeanFlow(settings, num_classes=CLASSES, static_shapes=static_shapes)
    draws = objective.shape(standard)
    terms = objective.loss(network, images, labels, draws)
    literal, expected = literal_mean_flow(settings, standard, **fault)
    if not fault:
        fields = objective.evaluate(network, images, labels, draws)
        for name in ("z", "v_t", "v_g", "u", "target"):
            close(getattr(fields, name), literal.fields[name], name)
        close(fields.du_dt, literal.fields["du_dt"][draws.num_flow_matching :], "du_dt")
        close(terms.parts["raw_u"], literal.raw_u, "raw_u")
        close(terms.total, literal.loss, "loss")
    return worst_relative_error(gradients(terms.total, network), expected)


def compare_improved(
    settings: ImprovedMeanFlowOptions, standard: StandardDraws, *, static_shapes: bool = False, **fault: Any
) -> float:
    """The same for iMF."""
    images, labels, _ = inputs()
    network = small_imf_network()
    objective = ImprovedMeanFlow(settings, num_classes=CLASSES, static_shapes=static_shapes)
    draws = objective.shape(standard)
    terms = objective.loss(network, images, labels, draws)
    literal, expected = literal_improved(settings, standard, **fault)
    if not fault:
        fields, first = objective.evaluate(network, images, labels, draws), draws.num_flow_matching
        for name in ("z", "v_t", "v_g", "u", "v", "V"):
            close(getattr(fields, name), literal.fields[name], name)
        close(fields.v_c[first:], literal.fields["v_c"][first:], "v_c")
        close(fields.v_u, literal.fields["v_u"][draws.unconditional_rows], "v_u")
        close(fields.du_dt, literal.fields["du_dt"][first:], "du_dt")
        close(terms.parts["raw_u"], literal.raw_u, "raw_u")
        close(terms.parts["raw_v"], literal.raw_v, "raw_v")
        close(terms.total, literal.loss, "loss")
    return worst_relative_error(gradients(terms.total, network), expected)


# Six of eight rows are flow matching, so that 7 and 8 drops reach the others.
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("dropped", [0, 3, 7, ROWS])
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_mean_flow_equals_the_literal_step(derivative, guidance, dropped):
    settings = MeanFlowOptions(derivative=derivative, **GUIDANCE[guidance])
    assert compare_mean_flow(settings, with_drops(inputs()[2], dropped)) < EXACT


@pytest.mark.parametrize("dropped", [0, 7, ROWS])
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_padding_mean_flows_guidance_pass_changes_nothing(guidance, dropped):
    settings = MeanFlowOptions(**GUIDANCE[guidance])
    assert compare_mean_flow(settings, with_drops(inputs()[2], dropped), static_shapes=True) < EXACT


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(
    "changes",
    [
        {"data_proportion": 0.0},
        {"data_proportion": 1.0, "guidance_scale": 0.4, "guidance_mixing": 0.6},  # v_c alone, of the training pass
        {"data_proportion": 1.0},
        {"data_proportion": 0.25, "time_distribution": "uniform"},
        {"time_mean": 0.6, "time_std": 1.7},
        {"adaptive_power": 0.5, "adaptive_epsilon": 1e-3},
    ],
    ids=str,
)
def test_mean_flow_equals_the_literal_step_for_every_setting(derivative, changes):
    settings = MeanFlowOptions(derivative=derivative, **(GUIDANCE["kappa 0.5 in an interval"] | changes))
    assert compare_mean_flow(settings, with_drops(inputs()[2], 1)) < EXACT


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("dropped", [0, 3, 6, ROWS])
def test_improved_mean_flow_equals_the_literal_step(derivative, dropped):
    settings = ImprovedMeanFlowOptions(derivative=derivative)
    assert compare_improved(settings, with_drops(inputs()[2], dropped)) < EXACT


@pytest.mark.parametrize("dropped", [0, 6, ROWS])
def test_padding_improved_mean_flows_guidance_pass_changes_nothing(dropped):
    assert compare_improved(ImprovedMeanFlowOptions(), with_drops(inputs()[2], dropped), static_shapes=True) < EXACT


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(
    "changes",
    [
        {"data_proportion": 0.0},
        {"data_proportion": 1.0},
        {"data_proportion": 0.25, "time_mean": 0.6, "time_std": 1.7},
        {"guidance_beta": 2.0, "guidance_max": 3.0},
        {"adaptive_power": 0.5, "adaptive_epsilon": 1e-3},
    ],
    ids=str,
)
def test_improved_mean_flow_equals_the_literal_step_for_every_setting(derivative, changes):
    settings = ImprovedMeanFlowOptions(derivative=derivative, **changes)
    assert compare_improved(settings, with_drops(inputs()[2], 1)) < EXACT


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(
    "fault",
    [
        {"derivative_factor": 0.0},
        {"derivative_factor": 1.001},
        {"tangent_is_true_velocity": True},
        {"tangent_before_drop": True},
        {"kappa_on_the_wrong_side": True},
        {"sorted_last": True},
    ],
    ids=str,
)
def test_the_comparison_notices_mistakes_in_mean_flow(derivative, fault):
    """One row that is no flow-matching row loses its label, the other keeps it."""
    settings = MeanFlowOptions(derivative=derivative, **GUIDANCE["kappa 0.5"])
    assert compare_mean_flow(settings, with_drops(inputs()[2], 7), **fault) > 1e5 * EXACT


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(
    "fault",
    [
        {"derivative_factor": 0.0},
        {"derivative_factor": 1.001},
        {"tangent_is_true_velocity": True},
        {"tangent_at_the_full_scale": True},
        {"no_guidance": True},
        {"sorted_last": True},
    ],
    ids=str,
)
def test_the_comparison_notices_mistakes_in_improved_mean_flow(derivative, fault):
    settings = ImprovedMeanFlowOptions(derivative=derivative)
    standard = inputs()[2]
    # Half of the rows have t outside of their guidance interval.
    standard = dataclasses.replace(standard, uniform_t_max=standard.uniform_t_max * 0)
    assert compare_improved(settings, with_drops(standard, 1), **fault) > 1e5 * EXACT
