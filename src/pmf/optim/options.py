"""The optimizer and ema sections, and the tables that they choose from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from pmf.errors import UserError
from pmf.options import (
    FLOAT,
    Betas,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    PositiveFloat,
    Section,
    number,
    number_name,
)
from pmf.tables import Row, one_of

# How parameters move; a new rule is a class (pmf.optim.rule.Rule or MatrixRule) and a line here.
RULES: dict[str, Row] = {
    "muon": "pmf.optim.muon:Muon",
    "nadamw": "pmf.optim.adam:NAdamW",
    "adamw": "pmf.optim.adam:AdamW",
}
# The learning rate over time; a new schedule is a function (pmf.optim.schedule) and a line here.
SCHEDULES: dict[str, Row] = {
    "constant": "pmf.optim.schedule:constant",
    "warmup_constant": "pmf.optim.schedule:warmup_constant",
    "warmup_cosine": "pmf.optim.schedule:warmup_cosine",
}
# How averages of the weights forget; a new one is a function (pmf.optim.ema) and a line here.
AVERAGES: dict[str, Row] = {
    "half_life": "pmf.optim.ema:half_life_decay",
    "decay": "pmf.optim.ema:constant_decay",
}


class OptimizerConfig(Section):
    """What moves the weights, and the learning rate over time."""

    name: Annotated[str, one_of(RULES)] = "muon"
    """muon: Muon for matrices and Nesterov AdamW for the rest; nadamw or adamw: one of the two Adams for everything."""
    lr: NonNegativeFloat = 1e-3
    """Peak learning rate, shared by Muon and Adam."""
    schedule: Annotated[str, one_of(SCHEDULES)] = "constant"
    """Learning rate over time; warmup_cosine reproduces the official schedule, see optim/schedule.py."""
    warmup_steps: NonNegative = 0
    """Linear warm-up from 0."""
    min_lr_factor: Fraction = 0.0
    """Floor of the cosine, as a fraction of lr."""
    momentum: Decay = 0.95
    """Muon's momentum."""
    betas: Betas = (0.9, 0.95)
    """Adam's moment decays."""
    eps: PositiveFloat = 1e-8
    """Adam's denominator and Muon's normaliser."""
    newton_schulz: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of Muon's orthogonalisation; auto is bfloat16 on CUDA and float32 elsewhere."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay on every parameter."""


def _average_name(name: str) -> str:
    rule, _, value = name.rpartition("_")
    if rule not in AVERAGES or not FLOAT.fullmatch(value) or not math.isfinite(number(value)):
        known = ", ".join(f"{known}_NUMBER" for known in AVERAGES)
        raise UserError(f"is '{name}'; choose from: {known}")
    return name


class EmaConfig(Section):
    """Averages of the weights; every one of them is kept and saved."""

    half_lives_kimg: list[PositiveFloat] = [500, 1000, 2000]
    """Half-lives of the kept weight averages, in thousands of images."""
    decays: list[Decay] = []
    """Constant decays per step of further averages (0.9999 in MeanFlow)."""
    others: list[Annotated[str, AfterValidator(_average_name)]] = []
    """Further averages, each written RULE_NUMBER: a row of the table AVERAGES in optim/options.py and its number."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """One of the kept averages.

    Attributes:
        name: as in the checkpoint's files (``ema_NAME``) and in ``sampling.ema``.
        rule: a row of ``AVERAGES``.
        value: the rule's number.
    """

    name: str
    rule: str
    value: float


def kept_averages(ema: EmaConfig) -> list[Average]:
    """The averages that a section asks for, those of half-lives first: ``500`` and ``0.9999`` are their names."""
    found = [Average(name=str(number_name(v)), rule="half_life", value=v) for v in ema.half_lives_kimg]
    found += [Average(name=str(number_name(v)), rule="decay", value=v) for v in ema.decays]
    for name in ema.others:
        rule, _, value = name.rpartition("_")
        found.append(Average(name=name, rule=rule, value=number(value)))
    return found


def ema_names(ema: EmaConfig) -> list[str]:
    """Names of the kept averages, as in the checkpoint's files."""
    return [average.name for average in kept_averages(ema)]
