"""Golden D (five steps of the official optimizer and its averages) and E (decays and learning rates)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pmf.config import EmaConfig, OptimizerConfig
from pmf.optim.ema import WeightAverages, half_life_decay
from pmf.optim.groups import is_matrix
from pmf.optim.muon import Muon
from pmf.optim.schedule import learning_rate
from tests.parity.golden import Golden

# An update moves an element by 1e-3 at most; float32 restatements of the formulas differ by 2e-7 after five steps.
UPDATE = 1e-6


class Parameters(nn.Module):
    """The golden parameters, under their own names with dots replaced."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.official = {name.replace(".", "/"): name for name in tensors}
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor.clone()))

    def by_official_name(self) -> dict[str, Tensor]:
        return {self.official[name]: parameter for name, parameter in self.named_parameters()}


def kind_of(name: str, tensor: Tensor) -> str:
    """The rule of optim/groups.py; in golden names the label table is the embedding."""
    return "muon" if is_matrix(tensor, is_embedding="embedding_table" in name) else "nadamw"


def create(golden: Golden, *, adamw: bool = False) -> tuple[Parameters, Muon]:
    parameters = Parameters(golden.group("const/params/step0/"))
    kinds: dict[str, list[Tensor]] = {}
    for name, parameter in parameters.by_official_name().items():
        kinds.setdefault("adamw" if adamw else kind_of(name, parameter), []).append(parameter)
    beta1 = golden.meta["defaults"]["adam_b1"]
    optimizer = Muon(
        [{"kind": kind, "params": tensors} for kind, tensors in kinds.items()],
        lr=golden.meta["lr"],
        momentum=golden.meta["defaults"]["beta"],
        betas=(beta1, golden.meta["adam_b2"]),
        eps=golden.meta["defaults"]["eps"],
    )
    return parameters, optimizer


def set_gradients(parameters: Parameters, golden: Golden, step: int) -> None:
    gradients = golden.group(f"grad/step{step}/")
    for name, parameter in parameters.by_official_name().items():
        parameter.grad = gradients[name].clone()


def check_update(before: dict[str, Tensor], parameters: Parameters, golden: Golden, old: str, new: str) -> None:
    theirs_before, theirs = golden.group(old), golden.group(new)
    for name, parameter in parameters.by_official_name().items():
        ours = parameter.detach() - before[name]
        torch.testing.assert_close(ours, theirs[name] - theirs_before[name], atol=UPDATE, rtol=0, msg=f"{new}{name}")


def copies(parameters: Parameters) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.by_official_name().items()}


def test_the_grouping_rule_gives_the_official_groups():
    golden = Golden("D_optimizer")
    tensors = golden.group("const/params/step0/")
    official = {"muon": "muon", "adam": "nadamw"}
    assert {n: kind_of(n, t) for n, t in tensors.items()} == {n: official[k] for n, k in golden.meta["labels"].items()}


def test_muon_and_nadamw_steps_states_and_averages_equal_optax():
    golden = Golden("D_optimizer")
    parameters, optimizer = create(golden)
    half_lives = sorted(int(key[3:].split("/")[0]) for key in golden.arrays if key.endswith("/beta/step1"))
    averages = WeightAverages(parameters, EmaConfig(half_lives_kimg=half_lives))
    for step in range(1, golden.meta["steps"] + 1):
        before = copies(parameters)
        set_gradients(parameters, golden, step)
        optimizer.step()
        check_update(before, parameters, golden, f"const/params/step{step - 1}/", f"const/params/step{step}/")
        averages.update(step * 1024, 1024)  # the official code assumes 1024 images a step

    names = {"muon/mu": "momentum", "adam/mu": "exp_avg", "adam/nu": "exp_avg_sq"}
    ours = {key.replace("/", ".").partition(".")[2]: key for key in optimizer.named_state(parameters)}
    assert len(ours) > 10
    state = optimizer.named_state(parameters)
    for theirs, moment in names.items():
        for name, tensor in golden.group(f"const/state/{theirs}/").items():
            mine = state[f"{moment}/{name.replace('.', '/')}"]
            torch.testing.assert_close(mine, tensor, rtol=1e-5, atol=1e-7, msg=name)  # sums of five float32 terms
    last = golden.meta["steps"]
    for half_life in half_lives:
        average = averages.state(str(half_life))
        for name, tensor in golden.group(f"ema{half_life}/params/step{last}/").items():
            torch.testing.assert_close(average[name.replace(".", "/")], tensor, atol=UPDATE, rtol=0, msg=name)
        for step in range(1, last + 1):
            beta = half_life_decay(half_life, step * 1024, 1024)
            assert beta == pytest.approx(float(golden[f"ema{half_life}/beta/step{step}"]), abs=1e-7)  # float32 there


def test_warm_up_starts_with_a_rate_of_zero_and_equals_optax():
    golden = Golden("D_optimizer")
    parameters, optimizer = create(golden)
    stored = {0: "const/params/step0/"} | {
        step: f"warmup/params/step{step}/"
        for step in range(1, golden.meta["steps"] + 1)
        if golden.group(f"warmup/params/step{step}/")
    }
    before = copies(parameters)
    last_stored = 0
    for step, rate in enumerate(golden["warmup/lr_used"].tolist(), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        set_gradients(parameters, golden, step)
        optimizer.step()
        if step in stored:
            check_update(before, parameters, golden, stored[last_stored], stored[step])
            before, last_stored = copies(parameters), step
    assert last_stored > 1


def test_adamw_steps_equal_optax():
    golden = Golden("D_optimizer")
    parameters, optimizer = create(golden, adamw=True)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4  # INDEX.md: optax.adamw(1e-4)
    before = copies(parameters)
    old = "const/params/step0/"
    for step in range(1, golden.meta["steps"] + 1):
        set_gradients(parameters, golden, step)
        optimizer.step()
        if golden.group(f"adamw/params/step{step}/"):
            check_update(before, parameters, golden, old, f"adamw/params/step{step}/")
            before, old = copies(parameters), f"adamw/params/step{step}/"
    assert old != "const/params/step0/"


def test_half_life_decays_equal_the_official_ones():
    golden = Golden("E_schedules")
    keys = [key for key in golden.arrays if key.startswith("ema/beta_halflife_")]
    assert keys
    for key in keys:
        half_life = float(key.split("_")[2])
        for step, beta in zip(golden["ema/steps"].tolist(), golden[key].tolist(), strict=True):
            assert half_life_decay(half_life, step * 1024, 1024) == pytest.approx(beta, abs=1e-7)  # float32 there


@pytest.mark.parametrize("case", sorted(Golden("E_schedules").meta["lr_cases"]))
def test_learning_rates_equal_the_official_ones(case):
    golden = Golden("E_schedules")
    meta = golden.meta["lr_cases"][case]
    config = OptimizerConfig(
        lr=meta["base_lr"],
        schedule={"warmup_const": "warmup_constant"}.get(meta["lr_schedule"], meta["lr_schedule"]),
        warmup_steps=meta["warmup_epochs"] * meta["steps_per_epoch"],
        min_lr_factor=meta["lr_min_factor"] or 0.0,
    )
    total = meta["num_epochs"] * meta["steps_per_epoch"]
    for updates, rate in enumerate(golden[f"lr/{case}"].tolist()):
        # float32 there; where the cosine ends at 0, what is left is float32 rounding of the peak
        assert learning_rate(config, updates, total) == pytest.approx(rate, rel=1e-6, abs=1e-7 * config.lr)
