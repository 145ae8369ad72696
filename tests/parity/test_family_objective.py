"""Golden G and H: the whole training losses of iMF and MeanFlow and every gradient, on each derivative mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pmf.flow.derivative import DERIVATIVES
from pmf.flow.improved_mean_flow import ImprovedMeanFlow
from pmf.flow.mean_flow import MeanFlow
from pmf.flow.options import ImprovedMeanFlowOptions, MeanFlowOptions
from tests.parity.golden import Golden, build_dit, build_imf, dit_name, imf_name, relative_error
from tests.parity.golden_step import FIELD, compare_fields, compare_gradients, standard_draws

MEAN_FLOWS = ["H_meanflow_none", "H_meanflow_cfg_kappa0", "H_meanflow_cfg_kappa0.5"]


def common_options(official: dict[str, Any]) -> dict[str, Any]:
    return {
        "data_proportion": official["data_proportion"],
        "time_mean": official["P_mean"],
        "time_std": official["P_std"],
        "label_drop": official["class_dropout_prob"],
        "adaptive_power": official["norm_p"],
        "adaptive_epsilon": official["norm_eps"],
    }


def mean_flow_options(official: dict[str, Any], derivative: str) -> MeanFlowOptions:
    guided = official["guidance_eq"] != "none"  # otherwise omega and kappa stand there and do nothing
    return MeanFlowOptions(
        **common_options(official),
        derivative=derivative,
        time_distribution=official["noise_dist"],
        guidance_scale=official["omega"] if guided else 1.0,
        guidance_mixing=official["kappa"] if guided else 0.0,
        guidance_interval=(official["t_start"], official["t_end"]),
    )


class MeanFlowCase:
    """One golden step: network, objective, inputs."""

    def __init__(self, name: str, derivative: str) -> None:
        self.golden = Golden(f"{name}_loss")
        meta = self.golden.meta
        weights = Golden(meta["params"].removesuffix(".npz")).group("params/")
        self.network = build_dit(meta["net"], weights)
        settings = mean_flow_options(meta["defaults"], derivative)
        self.objective = MeanFlow(settings, num_classes=meta["net"]["num_classes"])
        self.images, self.labels = self.golden.image("in/images"), self.golden["in/labels"].long()
        self.draws = self.objective.shape(standard_draws(self.golden))


class ImprovedMeanFlowCase:
    """The same for iMF."""

    def __init__(self, derivative: str) -> None:
        self.golden = Golden("G_imf_loss")
        meta = self.golden.meta
        weights = Golden(meta["params"].removesuffix(".npz")).group("params/")
        self.network = build_imf(meta["net"], weights)
        official = meta["defaults"]
        settings = ImprovedMeanFlowOptions(
            **common_options(official),
            derivative=derivative,
            guidance_beta=official["cfg_beta"],
            guidance_max=official.get("s_max", 7.0),
        )
        self.objective = ImprovedMeanFlow(settings, num_classes=meta["net"]["num_classes"])
        self.images, self.labels = self.golden.image("in/images"), self.golden["in/labels"].long()
        self.draws = self.objective.shape(standard_draws(self.golden))


def check_times_and_drops(case: MeanFlowCase | ImprovedMeanFlowCase) -> None:
    golden, draws = case.golden, case.draws
    for field in ("t", "r"):
        # one float32 sigmoid: last-place differences
        torch.testing.assert_close(getattr(draws, field), golden.scalar(f"mid/{field}"), atol=1e-6, rtol=1e-6)
    first = draws.num_flow_matching
    assert torch.equal(draws.t[:first], draws.r[:first])
    assert bool((draws.t[first:] > draws.r[first:]).all())
    dropped = golden["mid/labels_dropped"] == case.objective.null_label
    assert draws.dropped.nonzero()[:, 0].tolist() == dropped.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", MEAN_FLOWS)
def test_draws_of_mean_flow_equal_the_official_ones(name):
    case = MeanFlowCase(name, "auto")
    check_times_and_drops(case)
    changed = case.golden.image("mid/v_g") - case.golden.image("mid/v_t")
    # v_u + 1 (v_t - v_u) outside of the interval is v_t up to rounding.
    guided = changed.flatten(1).abs().amax(1) > 1e-4 * case.golden.image("mid/v_t").flatten(1).abs().amax(1)
    assert case.draws.guided.nonzero()[:, 0].tolist() == guided.nonzero()[:, 0].tolist()


def test_draws_of_improved_mean_flow_equal_the_official_ones():
    case = ImprovedMeanFlowCase("auto")
    check_times_and_drops(case)
    for field in ("omega", "t_min", "t_max"):
        # one float32 exponential: last-place differences
        torch.testing.assert_close(getattr(case.draws, field), case.golden.scalar(f"mid/{field}"), atol=1e-6, rtol=1e-6)
    assert case.draws.num_flow_matching == int(case.golden["mid/fm_mask"].sum())


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", MEAN_FLOWS)
def test_every_field_of_mean_flow_equals_the_official_one(name, derivative):
    case = MeanFlowCase(name, derivative)
    golden, first = case.golden, case.draws.num_flow_matching
    step = case.objective.evaluate(case.network, case.images, case.labels, case.draws)
    fields = {
        "z_t": (step.z, golden.image("mid/z_t")),
        "v_t": (step.v_t, golden.image("mid/v_t")),
        "v_g": (step.v_g, golden.image("mid/v_g")),
        "u": (step.u, golden.image("mid/u")),
        "du_dt": (step.du_dt, golden.image("mid/du_dt")[first:]),
        "u_tgt": (step.target, golden.image("mid/u_tgt")),
    }
    for field, (ours, theirs) in fields.items():
        assert relative_error(ours, theirs) < FIELD, field


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_every_field_of_improved_mean_flow_equals_the_official_one(derivative):
    case = ImprovedMeanFlowCase(derivative)
    golden, draws = case.golden, case.draws
    step = case.objective.evaluate(case.network, case.images, case.labels, draws)
    compare_fields(step, draws, golden)


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", MEAN_FLOWS)
def test_loss_and_every_gradient_of_mean_flow_equal_the_official_ones(name, derivative):
    case = MeanFlowCase(name, derivative)
    terms = case.objective.loss(case.network, case.images, case.labels, case.draws)
    elements = case.images[0].numel()
    for ours, theirs in (
        (terms.parts["raw_u"], case.golden["out/loss_raw_per_sample"]),
        (terms.parts["raw_v"], case.golden["out/v_loss_per_sample"]),
        (terms.logs["loss_u"], case.golden["out/loss_raw_per_sample"].mean() / elements),
        (terms.total, case.golden["out/loss"]),
    ):
        torch.testing.assert_close(ours.detach(), theirs, rtol=FIELD, atol=1e-9)
    terms.total.backward()
    compare_gradients(case.network, dit_name, Golden(f"{name}_grads"))


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_loss_and_every_gradient_of_improved_mean_flow_equal_the_official_ones(derivative):
    case = ImprovedMeanFlowCase(derivative)
    terms = case.objective.loss(case.network, case.images, case.labels, case.draws)
    for ours, key in (
        (terms.parts["raw_u"], "loss_u_raw_per_sample"),
        (terms.parts["raw_v"], "loss_v_raw_per_sample"),
        (terms.total, "loss"),
        (terms.logs["loss_u"], "metric_loss_u"),
        (terms.logs["loss_v"], "metric_loss_v"),
    ):
        torch.testing.assert_close(ours.detach(), case.golden[f"out/{key}"], rtol=FIELD, atol=1e-9, msg=key)
    terms.total.backward()
    compare_gradients(case.network, imf_name, Golden("G_imf_grads"))
