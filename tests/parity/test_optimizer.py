"""Golden D (Muon with Nesterov Adam, AdamW and the averages, step by step) and L (elements per optimizer group)."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor, nn

from pmf.net.sizes import SIZES, create_network
from pmf.optim.ema import WeightAverages, half_life_decay
from pmf.optim.groups import is_linear_weight, parameter_groups
from pmf.optim.optimizer import RuleOptimizer
from pmf.optim.options import EmaConfig, OptimizerConfig
from tests.parity.golden import Golden, golden_path

# Updates are at most about 1e-3 an element; float32 weights of order 1 round to 6e-8, Newton-Schulz in float32 adds as
# much again. Measured by the makers against float64: 1.9e-7 after five steps.
UPDATE = 1e-6
# Averages are float32 sums of float32 weights of order 1.
AVERAGE = 1e-6
# Moments are compared in relation to their tensor's largest element: sums of five float32 terms.
MOMENT = 1e-6
ADAMW_LEARNING_RATE = 1e-4  # of the iMF and MeanFlow recipes; not in the file's meta
OFFICIAL_IMAGES_PER_STEP = 1024


class Weights(nn.Module):
    """Tensors under the official names, whose dots a module does not allow in one name."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = list(tensors)
        self.tensors = nn.ParameterList(nn.Parameter(tensor.clone()) for tensor in tensors.values())

    def by_name(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in zip(self.names, self.tensors, strict=True)}


class Run:
    """An optimizer that follows the golden gradients and keeps the weights after every step."""

    def __init__(self, golden: Golden, kinds: dict[str, str], rates: list[float], **settings) -> None:
        self.weights = Weights(golden.group("const/params/step0/"))
        groups: dict[str, list[Tensor]] = {}
        for name, parameter in zip(self.weights.names, self.weights.tensors, strict=True):
            groups.setdefault(kinds[name], []).append(parameter)
        self.optimizer = RuleOptimizer(
            [{"kind": kind, "params": params} for kind, params in groups.items()], **settings
        )
        self.history = [self.weights.by_name()]
        for step, rate in enumerate(rates, start=1):
            for name, parameter in zip(self.weights.names, self.weights.tensors, strict=True):
                parameter.grad = golden[f"grad/step{step}/{name}"].clone()
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.history.append(self.weights.by_name())

    def require_updates(self, golden: Golden, case: str) -> None:
        """Compare the change of the weights between all steps that the file has."""
        steps = [step for step in range(len(self.history)) if golden.group(f"{case}/params/step{step}/")]
        assert steps
        before, theirs_before = 0, golden.group("const/params/step0/")
        for step in steps:
            theirs = golden.group(f"{case}/params/step{step}/")
            for name in self.weights.names:
                ours = self.history[step][name] - self.history[before][name]
                message = f"{case}, steps {before} to {step}, {name}"
                expected = theirs[name] - theirs_before[name]
                torch.testing.assert_close(ours, expected, rtol=0, atol=UPDATE, msg=lambda m, t=message: f"{t}: {m}")
            before, theirs_before = step, theirs


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("D_optimizer")


def kinds_of(golden: Golden) -> dict[str, str]:
    weights = golden.group("const/params/step0/")
    tables = {name for name in weights if "embedding_table" in name}
    return {name: "muon" if is_linear_weight(name, tensor, tables) else "nadamw" for name, tensor in weights.items()}


def official_run(golden: Golden, rates: list[float]) -> Run:
    official = golden.meta["defaults"]
    settings = {
        "momentum": official["beta"],
        "betas": (official["adam_b1"], golden.meta["adam_b2"]),
        "eps": official["eps"],
        "weight_decay": official["weight_decay"],
    }
    return Run(golden, kinds_of(golden), rates, **settings)


@pytest.fixture(scope="module")
def constant_run(golden) -> Run:
    return official_run(golden, [golden.meta["lr"]] * golden.meta["steps"])


def test_the_rule_gives_the_official_labels(golden):
    labels = {"muon": "muon", "nadamw": "adam"}
    assert {name: labels[kind] for name, kind in kinds_of(golden).items()} == golden.meta["labels"]


def test_constant_rate(golden, constant_run):
    constant_run.require_updates(golden, "const")


def test_warmup(golden):
    rates = golden["warmup/lr_used"].tolist()
    assert rates[0] == 0.0
    official_run(golden, rates).require_updates(golden, "warmup")


def test_adamw(golden):
    kinds = dict.fromkeys(golden.group("const/params/step0/"), "adamw")
    rates = [ADAMW_LEARNING_RATE] * golden.meta["steps"]
    betas = (golden.meta["defaults"]["adam_b1"], golden.meta["adam_b2"])
    Run(golden, kinds, rates, betas=betas).require_updates(golden, "adamw")


def test_moments_after_the_last_step(golden, constant_run):
    state = {
        name: constant_run.optimizer.state[parameter]
        for name, parameter in zip(constant_run.weights.names, constant_run.weights.tensors, strict=True)
    }
    names = {"muon/mu": "momentum", "adam/mu": "exp_avg", "adam/nu": "exp_avg_sq"}
    for theirs, ours in names.items():
        moments = golden.group(f"const/state/{theirs}/")
        assert set(moments) == {name for name, moment in state.items() if ours in moment}
        for name, moment in moments.items():
            difference = (state[name][ours] - moment).abs().max()
            assert difference <= MOMENT * moment.abs().max(), f"{theirs}, {name}: {difference:.1e}"


def test_averages_along_the_constant_run(golden, constant_run):
    half_lives = sorted({key.split("/")[0][3:] for key in golden.group("") if key.startswith("ema")}, key=float)
    assert half_lives
    weights = Weights(golden.group("const/params/step0/"))
    averages = WeightAverages(weights, EmaConfig(half_lives_kimg=[float(value) for value in half_lives]))
    for step in range(1, golden.meta["steps"] + 1):
        for name, parameter in zip(weights.names, weights.tensors, strict=True):
            parameter.data.copy_(constant_run.history[step][name])
        averages.update(weights, step * OFFICIAL_IMAGES_PER_STEP, OFFICIAL_IMAGES_PER_STEP)
    for half_life in half_lives:
        for step in range(1, golden.meta["steps"] + 1):
            images_seen = step * OFFICIAL_IMAGES_PER_STEP
            beta = half_life_decay(float(half_life), images_seen, OFFICIAL_IMAGES_PER_STEP)
            # the official beta is a float32 of at most 1
            assert beta == pytest.approx(float(golden[f"ema{half_life}/beta/step{step}"]), abs=1e-7)
        ours = dict(zip(weights.names, averages.state(half_life).values(), strict=True))
        for name, average in golden.group(f"ema{half_life}/params/step{golden.meta['steps']}/").items():
            torch.testing.assert_close(ours[name], average, rtol=0, atol=AVERAGE)


@pytest.mark.parametrize("name", [name for name in SIZES if re.fullmatch("pmf_[blh]_(16|32)", name)])
def test_elements_per_group_of_the_published_networks(name):
    table = json.loads(golden_path(f"L_model_shapes_{'hsdp' if '_h_' in name else 'main'}.json").read_text())
    elements = table[f"pmfDiT_{name[4:].upper()}"]["elements_by_optimizer_group"]
    with torch.device("meta"):
        network = create_network(name, image_size=512 if name.endswith("32") else 256, num_classes=1000)
    groups = parameter_groups(network, OptimizerConfig())
    ours = {group["kind"]: sum(parameter.numel() for parameter in group["params"]) for group in groups}
    assert ours == {"muon": elements["muon"], "nadamw": elements["adam"]}
