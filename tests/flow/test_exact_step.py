"""The step that trains equals the literal step of benchmarks/reference_step.py in float64, gradient by gradient.

The loss value hides errors (the adaptive weight pins it near 2), so every comparison is over gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import pytest
import torch
from torch import Tensor

from benchmarks.reference_step import Fault, ReferenceStep, reference_step
from pmf.flow.draws import StandardDraws, draw_standard
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.dual import Linear
from pmf.optim.groups import create_optimizer
from pmf.optim.options import OptimizerConfig
from tests.flow.small_step import (
    CLASSES,
    EXACT,
    ROWS,
    computed_once,
    gradients,
    inputs,
    key_of,
    shape_draws,
    small_network,
    with_drops,
    worst_relative_error,
)

LITERAL: dict[Hashable, tuple[ReferenceStep, dict[str, Tensor]]] = {}


def literal_step(
    settings: PixelMeanFlowOptions, standard: StandardDraws, **fault: float
) -> tuple[ReferenceStep, dict[str, Tensor]]:
    """The literal step and its gradients, computed once for both ways to take ours."""
    return computed_once(
        LITERAL,
        key_of(settings, standard, fault),
        small_network(),
        lambda network, x, y: reference_step(network, settings, CLASSES, x, y, standard, Fault(**fault)),
    )


def compare(settings: PixelMeanFlowOptions, standard: StandardDraws, **fault: float) -> float:
    images, labels, _ = inputs()
    network = small_network()
    objective = PixelMeanFlow(settings, num_classes=CLASSES)
    ours = objective.loss(network, images, labels, shape_draws(standard, settings, 1.0))
    theirs, expected = literal_step(settings, standard, **fault)
    if not fault:
        torch.testing.assert_close(ours.parts["raw_u"], theirs.raw_u, rtol=EXACT, atol=0)
        torch.testing.assert_close(ours.parts["raw_v"], theirs.raw_v, rtol=EXACT, atol=0)
        torch.testing.assert_close(ours.total, theirs.loss, rtol=EXACT, atol=0)
    return worst_relative_error(gradients(ours.total, network), expected)


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("dropped", range(ROWS + 1))
def test_equals_the_literal_step_for_every_number_of_dropped_labels(derivative, dropped):
    standard = inputs()[2]
    settings = PixelMeanFlowOptions(derivative=derivative)
    assert compare(settings, with_drops(standard, dropped)) < EXACT


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize(
    "changes",
    [
        {"data_proportion": 0.0},
        {"data_proportion": 1.0},
        {"data_proportion": 0.25, "noise_scale": 4.0},
        {"guidance_beta": 2.0, "uniform_time_fraction": 0.5},
        {"adaptive_power": 0.5, "adaptive_epsilon": 1e-3},
        {"time_mean": -4.0},  # most times below the clip at 0.05
    ],
    ids=str,
)
def test_equals_the_literal_step_for_every_setting(derivative, changes):
    standard = inputs()[2]
    settings = PixelMeanFlowOptions(derivative=derivative, **changes)
    assert compare(settings, with_drops(standard, 3)) < EXACT


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
def test_padded_swiglu_widths_change_neither_gradients_nor_trajectories(derivative):
    images, labels, standard = inputs()
    settings = PixelMeanFlowOptions(derivative=derivative)
    objective, draws = PixelMeanFlow(settings, num_classes=CLASSES), shape_draws(standard, settings, 1.0)
    padded, plain = small_network(mlp_width=61), small_network(mlp_width=61)
    assert padded.u_blocks[0].mlp.gate.extra == (0, 0, 0, 3)
    for module in plain.modules():
        if isinstance(module, Linear):
            module.extra = (0, 0, 0, 0)
    optimizers = [create_optimizer(network, OptimizerConfig()) for network in (padded, plain)]
    for _ in range(3):
        ours = objective.loss(padded, images, labels, draws).total
        theirs = reference_step(plain, settings, CLASSES, images, labels, standard).loss
        found, expected = gradients(ours, padded), gradients(theirs, plain)
        assert worst_relative_error(found, expected) < EXACT
        for network, optimizer, by_name in zip((padded, plain), optimizers, (found, expected), strict=True):
            for name, parameter in network.named_parameters():
                parameter.grad = by_name[name]
            optimizer.step()
    for a, b in zip(padded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=EXACT)  # steps are of order 1e-3


@pytest.mark.parametrize("dropped", [0, 3, ROWS])
def test_padding_the_guidance_pass_changes_nothing(dropped):
    images, labels, standard = inputs()
    settings, network = PixelMeanFlowOptions(), small_network()
    found, rows = [], []
    for filling in ({}, {"few_sizes": True}, {"static_shapes": True}):
        objective = PixelMeanFlow(settings, num_classes=CLASSES, **filling)
        draws = objective.shape(with_drops(standard, dropped))
        rows.append(4 + len(draws.unconditional_rows))
        found.append(gradients(objective.loss(network, images, labels, draws).total, network))
    few = max(rows[0], 4 + 2)  # no row without label, or one, is no size of its own
    assert rows[1:] == [few + few % 2, 4 + ROWS]
    for filled in found[1:]:
        assert worst_relative_error(filled, found[0]) < EXACT


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("changes", [{}, {"noise_scale": 4.0}, {"time_mean": -4.0}], ids=str)
@pytest.mark.parametrize("parameterization", ["u", "linear", "edm", "scm"])
def test_equals_the_literal_step_for_every_output(derivative, parameterization, changes):
    standard = inputs()[2]
    settings = PixelMeanFlowOptions(derivative=derivative, parameterization=parameterization, **changes)
    assert compare(settings, with_drops(standard, 3)) < EXACT


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("data_proportion", [0.0, 0.5])
def test_equals_the_literal_step_on_the_edges_of_the_times(derivative, data_proportion):
    standard = inputs()[2]
    settings = PixelMeanFlowOptions(derivative=derivative, r_distribution="zero", data_proportion=data_proportion)
    draws = shape_draws(standard, settings, 1.0)
    first = draws.num_flow_matching
    assert torch.equal(draws.r[:first], draws.t[:first])
    assert int(draws.r[first:].count_nonzero()) == 0
    assert compare(settings, with_drops(standard, 3)) < EXACT


# Dropped labels on none, some and all of the flow-matching rows (0-3) and of the others (4-7).
ANY_ROWS = [[], [0], [3, 4], [2, 5, 7], [4, 5, 6, 7], [1, 2, 3, 6], list(range(ROWS))]


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize("dropped", ANY_ROWS, ids=str)
def test_equals_the_literal_step_wherever_labels_are_dropped(derivative, dropped):
    standard = inputs()[2]
    uniform = torch.ones(ROWS, dtype=torch.float64).index_fill(0, torch.tensor(dropped, dtype=torch.int64), 0.0)
    standard = dataclasses.replace(standard, uniform_drop=uniform)
    settings = PixelMeanFlowOptions(derivative=derivative, label_drop_rows="any")
    draws = shape_draws(standard, settings, 1.0)
    assert draws.dropped.nonzero()[:, 0].tolist() == dropped
    assert not set(draws.unconditional_rows.tolist()) & set(dropped)
    assert compare(settings, standard) < EXACT


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
def test_rows_with_a_guidance_scale_of_exactly_one_are_skipped_exactly(derivative):
    standard = inputs()[2]
    scales = standard.uniform_omega.clone()
    scales[::2] = 0.0
    standard = with_drops(dataclasses.replace(standard, uniform_omega=scales), 1)
    settings = PixelMeanFlowOptions(derivative=derivative)
    draws = shape_draws(standard, settings, 1.0)
    assert set(draws.unconditional_rows.tolist()) <= set(range(1, ROWS, 2))
    assert compare(settings, standard) < EXACT


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
@pytest.mark.parametrize(
    "fault",
    [
        {"derivative_factor": 0.0},
        {"derivative_factor": 1.001},
        {"tangent_is_true_velocity": True},
        {"no_guidance": True},
        {"sorted_first": True},
    ],
    ids=str,
)
def test_the_comparison_notices_mistakes(derivative, fault):
    standard = inputs()[2]
    error = compare(PixelMeanFlowOptions(derivative=derivative), with_drops(standard, 1), **fault)
    assert error > 1e5 * EXACT


@pytest.mark.parametrize(
    "change",
    [
        *({"parameterization": name} for name in ("u", "linear", "edm", "scm")),
        {"r_distribution": "zero"},
        {"label_drop_rows": "any"},
    ],
    ids=str,
)
def test_the_comparison_notices_a_switch_that_does_nothing(change):
    images, labels, standard = inputs()
    uniform = torch.ones(ROWS, dtype=torch.float64).index_fill(0, torch.tensor([2, 5]), 0.0)
    standard = dataclasses.replace(standard, uniform_drop=uniform)
    network, default = small_network(), PixelMeanFlowOptions()
    draws = shape_draws(standard, default, 1.0)
    ours = PixelMeanFlow(default, num_classes=CLASSES).loss(network, images, labels, draws).total
    theirs = reference_step(network, PixelMeanFlowOptions(**change), CLASSES, images, labels, standard).loss
    assert worst_relative_error(gradients(ours, network), gradients(theirs, network)) > 1e5 * EXACT


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
def test_the_derivative_leaves_no_graph_behind(derivative):
    images, labels, standard = inputs()
    settings = PixelMeanFlowOptions(derivative=derivative)
    objective = PixelMeanFlow(settings, num_classes=CLASSES)
    step = objective.evaluate(small_network(), images, labels, shape_draws(standard, settings, 1.0))
    assert step.u.requires_grad
    assert not step.du_dt.requires_grad
    assert not step.v_g.requires_grad
    assert not step.v_c.requires_grad


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
def test_autocast_trains_every_parameter(derivative):
    """Guidance runs without gradient inside the same autocast region; its cached casts must not reach the training."""
    images, labels, standard = inputs()
    settings = PixelMeanFlowOptions(derivative=derivative)
    objective = PixelMeanFlow(settings, num_classes=CLASSES)
    draws = shape_draws(standard, settings, 1.0)
    network = small_network()
    exact = gradients(objective.loss(network, images, labels, draws).total, network)
    network = network.float()
    images, draws = images.float(), shape_draws(standard, settings, 1.0)
    draws = dataclasses.replace(
        draws, **{k: v.float() for k, v in vars(draws).items() if isinstance(v, Tensor) and v.is_floating_point()}
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.loss(network, images, labels, draws).total
    rounded = gradients(loss, network)
    flat = [torch.cat([g[name].flatten().double() for name in exact]) for g in (rounded, exact)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.98  # bf16 keeps 8 bits per product
    for name, gradient in rounded.items():
        assert float(gradient.norm()) > 0.2 * float(exact[name].norm()), name


def test_raw_draws_are_a_function_of_the_generator():
    images, _, _ = inputs()
    first = draw_standard(images, torch.Generator().manual_seed(5))
    again = draw_standard(images, torch.Generator().manual_seed(5))
    other = draw_standard(images, torch.Generator().manual_seed(6))
    for field in dataclasses.fields(StandardDraws):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
        assert not torch.equal(getattr(first, field.name), getattr(other, field.name))
