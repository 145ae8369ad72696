"""The optimizer and ema sections."""

from __future__ import annotations

from typing import Literal

from pmf.options import Betas, Decay, Fraction, NonNegative, NonNegativeFloat, PositiveFloat, Section, number_name


class OptimizerConfig(Section):
    """Muon or Adam, and the learning rate over time."""

    name: Literal["muon", "nadamw", "adamw"] = "muon"
    """muon: Muon for matrices and Nesterov AdamW for the rest; or one of the two Adams for everything."""
    lr: NonNegativeFloat = 1e-3
    """Peak learning rate, shared by Muon and Adam."""
    schedule: Literal["constant", "warmup_constant", "warmup_cosine"] = "constant"
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


class EmaConfig(Section):
    """Averages of the weights; every one of them is kept and saved."""

    half_lives_kimg: list[PositiveFloat] = [500, 1000, 2000]
    """Half-lives of the kept weight averages, in thousands of images."""
    decays: list[Decay] = []
    """Constant decays per step of further averages (0.9999 in MeanFlow)."""


def ema_names(ema: EmaConfig) -> list[str]:
    """Names of the kept averages, as in the checkpoint's files: ``500`` for a half-life, ``0.9999`` for a decay."""
    return [number_name(value) for value in (*ema.half_lives_kimg, *ema.decays)]
