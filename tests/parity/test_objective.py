"""Golden B (the whole training loss and every gradient) and C (samplers, label drop), on each derivative mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pmf.checkpoint.official.names import official_name
from pmf.flow.derivative import DERIVATIVES
from pmf.flow.draws import Draws, StandardDraws, guidance_scales, mixed_times
from pmf.flow.guidance import guided_velocity
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.pixel_transformer import PixelTransformer
from tests.flow.small_step import shape_draws
from tests.parity.golden import Golden, build_network
from tests.parity.golden_step import FIELD, GRADIENT, compare_fields, compare_gradients, standard_draws

CASES = ["B1_pmf", "B2_pmf", "B3_pmf", "B4_pmf"]


def settings_of(meta: dict, derivative: str = "auto") -> PixelMeanFlowOptions:
    official = meta["defaults"]
    return PixelMeanFlowOptions(
        derivative=derivative,
        data_proportion=official["data_proportion"],
        time_mean=official["P_mean"],
        time_std=official["P_std"],
        uniform_time_fraction=0.1 if official["tr_uniform"] else 0.0,
        noise_scale=official["noise_scale"],
        guidance_beta=official["cfg_beta"],
        guidance_max=official["cfg_max"],
        label_drop=official["class_dropout_prob"],
        adaptive_power=official["norm_p"],
        adaptive_epsilon=official["norm_eps"],
    )


class StandIns:
    """The two distances that the golden vectors used in place of LPIPS and ConvNeXt (INDEX.md, section B)."""

    def __init__(self, golden: Golden) -> None:
        official = golden.meta["defaults"]
        self.factors = {name: official[f"{name}_lambda"] for name in ("lpips", "convnext") if official[name]}
        self.weights = golden.image("aux/W") if official["convnext"] else torch.zeros(())

    def __call__(self, prediction: Tensor, image: Tensor, _uniform_crop: Tensor) -> dict[str, Tensor]:
        difference = prediction - image
        distances = {}
        if "lpips" in self.factors:
            distances["lpips"] = torch.nn.functional.avg_pool2d(difference, 4).square().mean((1, 2, 3))
        if "convnext" in self.factors:
            distances["convnext"] = torch.einsum("bchw,kchw->bk", difference, self.weights).abs().mean(1)
        return distances


class Case:
    """One golden step: network, objective, inputs."""

    def __init__(self, name: str, derivative: str) -> None:
        self.golden = Golden(f"{name}_loss")
        meta = self.golden.meta
        self.network: PixelTransformer = build_network(meta["net"], Golden("B_params").group("params/"))
        self.objective = PixelMeanFlow(
            settings_of(meta, derivative),
            num_classes=meta["net"]["num_classes"],
            perceptual=StandIns(self.golden),
            perceptual_max_t=meta["defaults"]["perceptual_max_t"],
        )
        self.images, self.labels = self.golden.image("in/images"), self.golden["in/labels"].long()
        standard = standard_draws(self.golden)
        self.draws: Draws = self.objective.shape(standard)


@pytest.mark.parametrize("name", CASES)
def test_draws_equal_the_official_ones(name):
    case = Case(name, "auto")
    golden, draws = case.golden, case.draws
    for field, key in (("t", "t"), ("r", "r"), ("omega", "omega"), ("t_min", "t_min"), ("t_max", "t_max")):
        # one float32 sigmoid or exponential: last-place differences
        torch.testing.assert_close(getattr(draws, field), golden.scalar(f"mid/{key}"), atol=1e-6, rtol=1e-6)
    assert draws.num_flow_matching == int(golden["mid/fm_mask"].sum())
    dropped = golden["mid/labels_dropped"] == case.objective.null_label
    assert draws.dropped.nonzero()[:, 0].tolist() == dropped.nonzero()[:, 0].tolist()
    if "mid/perceptual_mask" in golden:
        assert draws.perceptual_rows.tolist() == golden["mid/perceptual_mask"].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", CASES)
def test_every_field_equals_the_official_one(name, derivative):
    case = Case(name, derivative)
    golden, draws = case.golden, case.draws
    step = case.objective.evaluate(case.network, case.images, case.labels, draws)
    compare_fields(step, draws, golden)


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_equal_the_official_ones(name, derivative):
    case = Case(name, derivative)
    golden = case.golden
    terms = case.objective.loss(case.network, case.images, case.labels, case.draws)
    for ours, key in (
        (terms.parts["raw_u"], "loss_u_raw_per_sample"),
        (terms.parts["raw_v"], "loss_v_raw_per_sample"),
        (terms.parts["weighted_u"], "loss_u_per_sample"),
        (terms.parts["weighted_v"], "loss_v_per_sample"),
        (terms.parts["weighted_perceptual"], "aux_per_sample"),
        (terms.total, "loss"),
        (terms.logs["loss_u"], "metric_loss_u"),
        (terms.logs["loss_v"], "metric_loss_v"),
        (terms.logs.get("loss_lpips", torch.zeros(())), "metric_aux_loss_lpips"),
        (terms.logs.get("loss_convnext", torch.zeros(())), "metric_aux_loss_convnext"),
    ):
        if f"out/{key}" in golden:
            torch.testing.assert_close(ours.detach(), golden[f"out/{key}"], rtol=FIELD, atol=1e-9, msg=key)

    terms.total.backward()
    compare_gradients(case.network, official_name, Golden(f"{name}_grads"))
    gradients = [parameter.grad for parameter in case.network.parameters()]
    total = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    torch.testing.assert_close(total, golden["out/grad_global_norm"].reshape(()), rtol=GRADIENT, atol=0)


# C. One function of one raw draw each: float32 last-place differences.
C_TOLERANCE = 1e-6


def c_cases(prefix: str) -> list[str]:
    return [key for key in Golden("C_samplers").meta["cases"] if key.startswith(prefix)]


@pytest.mark.parametrize("case", c_cases("sample_tr"))
def test_times_equal_the_official_sampler(case):
    golden = Golden("C_samplers")
    meta = golden.meta["cases"][case]
    settings = PixelMeanFlowOptions(
        time_mean=meta["P_mean"],
        time_std=meta["P_std"],
        data_proportion=meta["data_proportion"],
        uniform_time_fraction=0.1 if meta["tr_uniform"] else 0.0,
    )
    standard = standard_draws(golden, f"{case}/")
    draws = shape_draws(standard, settings, 1.0)
    torch.testing.assert_close(draws.t, golden.scalar(f"{case}/t"), atol=C_TOLERANCE, rtol=0)
    torch.testing.assert_close(draws.r, golden.scalar(f"{case}/r"), atol=C_TOLERANCE, rtol=0)
    assert draws.num_flow_matching == int(golden[f"{case}/fm_mask"].sum())


@pytest.mark.parametrize("case", c_cases("logit_normal"))
def test_logit_normal_times_equal_the_official_ones(case):
    golden = Golden("C_samplers")
    meta = golden.meta["cases"][case]
    normal = golden.scalar("logit_normal/n")
    ones = torch.ones_like(normal)
    standard = StandardDraws(
        **dict.fromkeys(StandardDraws.__dataclass_fields__, ones) | {"normal_t": normal, "normal_r": normal}
    )
    settings = PixelMeanFlowOptions(time_mean=meta["P_mean"], time_std=meta["P_std"])
    times = mixed_times(standard, settings, num_flow_matching=0)
    torch.testing.assert_close(times.t, golden.scalar(f"{case}/t"), atol=C_TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", c_cases("cfg_scale"))
def test_guidance_scales_equal_the_official_ones(case):
    golden = Golden("C_samplers")
    meta = golden.meta["cases"][case]
    ours = guidance_scales(golden.scalar("cfg_scale/u"), meta["cfg_beta"], meta["s_max"])
    torch.testing.assert_close(ours, golden.scalar(f"{case}/omega"), atol=C_TOLERANCE, rtol=C_TOLERANCE)


def test_guidance_intervals_equal_the_official_ones():
    golden = Golden("C_samplers")
    fm = golden.scalar("cfg_interval/fm_mask")
    rows, first = len(fm), int(fm.sum())
    # The stored mask need not be "first rows"; sort it to the front, as every real mask is.
    order = torch.argsort(~fm, stable=True)
    ones = torch.ones(rows)
    standard = StandardDraws(
        **dict.fromkeys(StandardDraws.__dataclass_fields__, ones)
        | {
            "uniform_t_min": golden.scalar("cfg_interval/u_tmin")[order],
            "uniform_t_max": golden.scalar("cfg_interval/u_tmax")[order],
            "normal_e": torch.zeros(rows, 1, 1, 1),
        }
    )
    draws = shape_draws(standard, PixelMeanFlowOptions(data_proportion=first / rows), 1.0)
    assert draws.num_flow_matching == first
    torch.testing.assert_close(draws.t_min, golden.scalar("cfg_interval/t_min")[order], atol=C_TOLERANCE, rtol=0)
    torch.testing.assert_close(draws.t_max, golden.scalar("cfg_interval/t_max")[order], atol=C_TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", c_cases("cond_drop"))
def test_label_drop_equals_the_official_one(case):
    """Which rows lose their label, and that their target is v_t while the others keep the guided one."""
    golden = Golden("C_samplers")
    meta = golden.meta["cases"][case]
    uniform, labels = golden.scalar(f"{case}/u"), golden[f"{case}/labels_in"]
    rows = len(uniform)
    ones = torch.ones(rows)
    standard = StandardDraws(
        **dict.fromkeys(StandardDraws.__dataclass_fields__, ones)
        | {"uniform_drop": uniform, "uniform_omega": 0.5 * ones, "normal_e": torch.zeros(rows, 1, 1, 1)}
    )
    # All rows flow-matching: guidance is on everywhere, so only the drop decides which rows are guided.
    settings = PixelMeanFlowOptions(data_proportion=1.0, label_drop=meta["class_dropout_prob"])
    draws = shape_draws(standard, settings, 1.0)
    dropped = labels.masked_fill(draws.dropped, meta["num_classes"])
    np.testing.assert_array_equal(dropped.numpy(), golden[f"{case}/labels"].numpy())

    v_t, guided = golden.image(f"{case}/v_t"), golden.image(f"{case}/v_g_in")
    # v_c - v_u chosen so that v_t + (1 - 1/omega) (v_c - v_u) is the stored guided velocity.
    v_c = (guided - v_t) / (1 - 1 / draws.omega)[:, None, None, None]
    ours = guided_velocity(v_t, v_c, torch.zeros_like(v_c)[draws.unconditional_rows], draws)
    torch.testing.assert_close(ours, golden.image(f"{case}/v_g"), atol=5e-6, rtol=0)  # a division and its inverse
