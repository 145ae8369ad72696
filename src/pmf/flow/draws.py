"""Every random number of a training step, named.

t, r: times, 1 is noise, r <= t; e: noise; omega: guidance scale, active for t in [t_min, t_max];
"flow-matching rows" (FM) have r = t. Rows are ordered: FM rows first, and as released the rows whose label is dropped
are the first ones again. Scalars are drawn on the host, so that how many rows each pass of the step needs is known
there and nothing waits for the device.

A draw has two stages: standard normals and uniforms (:class:`StandardDraws`), the same for all methods, then the
distributions of a method as pure functions of them (official pmf.py, imf.py and meanflow.py: sample_tr,
sample_cfg_scale, sample_cfg_interval, cond_drop).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pmf.flow.options import AverageVelocityOptions, DrawnGuidanceOptions, PixelMeanFlowOptions
from pmf.randomness import normal_like


@dataclass(frozen=True, kw_only=True)
class StandardScalars:
    """Standard normals (``normal_*``) and uniforms on [0, 1) (``uniform_*``); (B,) on the CPU."""

    normal_t: Tensor
    normal_r: Tensor
    uniform_mask: Tensor
    uniform_t: Tensor
    uniform_r: Tensor
    uniform_t_min: Tensor
    uniform_t_max: Tensor
    uniform_omega: Tensor
    uniform_drop: Tensor


@dataclass(frozen=True, kw_only=True)
class StandardDraws(StandardScalars):
    """The same, the noise, and what no other row or micro-batch depends on."""

    normal_e: Tensor
    """(B, C, H, W) on the images' device."""
    uniform_crop: Tensor
    """(B, 4) on the CPU: area, aspect ratio, top and left of the crop that the perceptual distances look through."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """t and r, (B,) each, r <= t."""

    t: Tensor
    r: Tensor


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guidance scale omega >= 1 and the interval [t_min, t_max] in which it is active, (B,) each."""

    omega: Tensor
    t_min: Tensor
    t_max: Tensor


@dataclass(frozen=True, kw_only=True)
class TimeDraws:
    """What one step of any of the methods needs beyond images, labels and weights; tensors on the images' device.

    Attributes:
        t, r: (B,).
        e: (B, C, H, W).
        num_flow_matching: the first so many rows have r = t.
        dropped: (B,) bool: rows that lose their label.
    """

    t: Tensor
    r: Tensor
    e: Tensor
    num_flow_matching: int
    dropped: Tensor


@dataclass(frozen=True, kw_only=True)
class Draws(TimeDraws):
    """The same for iMF and pMF, which draw the guidance too; only pMF has rows under perceptual losses.

    Attributes:
        omega, t_min, t_max: (B,).
        unconditional_rows: (U,) int64, ascending: rows that keep their label and whose guidance scale at t is not 1;
            only they need the unconditional velocity. After them rows that only fill the pass (filling.py).
        unconditional_weight: (U,) 1 - 1 / omega, 0 of a row that only fills.
        perceptual_rows: (P,) int64, ascending: rows with t below the perceptual threshold; then rows that only fill.
            None at all where there are no perceptual distances and numbers of rows come in a few sizes.
        perceptual_weight: (P,) 1, 0 of a row that only fills.
        uniform_crop: (P, 4) uniforms of their crops.
    """

    omega: Tensor
    t_min: Tensor
    t_max: Tensor
    unconditional_rows: Tensor
    unconditional_weight: Tensor
    perceptual_rows: Tensor
    perceptual_weight: Tensor
    uniform_crop: Tensor


def draw_scalars(rows: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> StandardScalars:
    """Draw the scalars of rows from a CPU generator; how much work each row is follows from them alone."""
    normals = torch.randn(2, rows, generator=generator, dtype=dtype)
    uniforms = torch.rand(7, rows, generator=generator, dtype=dtype)
    return StandardScalars(
        normal_t=normals[0],
        normal_r=normals[1],
        uniform_mask=uniforms[0],
        uniform_t=uniforms[1],
        uniform_r=uniforms[2],
        uniform_t_min=uniforms[3],
        uniform_t_max=uniforms[4],
        uniform_omega=uniforms[5],
        uniform_drop=uniforms[6],
    )


def draw_standard(images: Tensor, generator: torch.Generator, scalars: StandardScalars | None = None) -> StandardDraws:
    """Draw from a CPU generator; the noise comes from a generator on the images' device that it seeds.

    Args:
        images: (B, C, H, W); shape, dtype and device count. On the meta device the noise has no contents either.
        generator: on the CPU.
        scalars: of B rows, if they are drawn already.
    """
    scalars = scalars or draw_scalars(images.shape[0], generator, images.dtype)
    normal_e = normal_like(images, generator)
    uniform_crop = torch.rand(len(images), 4, generator=generator, dtype=images.dtype)
    return StandardDraws(**vars(scalars), normal_e=normal_e, uniform_crop=uniform_crop)


def mixed_times(standard: StandardScalars, settings: PixelMeanFlowOptions, num_flow_matching: int) -> Times:
    """pMF's: two logit-normal times, or with some probability two uniform ones; r := t on FM rows, then sorted.

    The official order matters: because r := t comes before the sorting, an FM row's t is one draw and not the larger
    of two. The ablation's r := 0 on the other rows stands at the same place (not in the official code).
    """
    t = logit_normal(standard.normal_t, settings)
    r = logit_normal(standard.normal_r, settings)
    uniform = standard.uniform_mask < settings.uniform_time_fraction
    t = torch.where(uniform, standard.uniform_t, t)
    r = torch.where(uniform, standard.uniform_r, r)
    if settings.r_distribution == "zero":
        r = torch.zeros_like(r)
    r[:num_flow_matching] = t[:num_flow_matching]
    return Times(t=torch.maximum(t, r), r=torch.minimum(t, r))


def sorted_times(first: Tensor, second: Tensor, num_flow_matching: int) -> Times:
    """MeanFlow's and iMF's: of two draws t is the larger and r the smaller, then r := t on FM rows."""
    t, r = torch.maximum(first, second), torch.minimum(first, second)
    r[:num_flow_matching] = t[:num_flow_matching]
    return Times(t=t, r=r)


def logit_normal(normal: Tensor, settings: AverageVelocityOptions) -> Tensor:
    """Standard normals to times on (0, 1)."""
    return torch.sigmoid(normal * settings.time_std + settings.time_mean)


def sample_guidance(standard: StandardScalars, settings: DrawnGuidanceOptions, num_flow_matching: int) -> Guidance:
    """A scale and an interval around t = 0.5 for each row; FM rows get the whole of [0, 1]."""
    omega = guidance_scales(standard.uniform_omega, settings.guidance_beta, settings.guidance_max)
    t_min, t_max = 0.5 * standard.uniform_t_min, 0.5 + 0.5 * standard.uniform_t_max
    t_min[:num_flow_matching], t_max[:num_flow_matching] = 0.0, 1.0
    return Guidance(omega=omega, t_min=t_min, t_max=t_max)


def sample_label_drop(standard: StandardScalars, probability: float, *, first_rows: bool) -> Tensor:
    """Rows that lose their label, (B,) bool: those whose uniform is below the probability, or as many first rows."""
    dropped = standard.uniform_drop < probability
    return torch.arange(len(dropped)) < dropped.sum() if first_rows else dropped


def guidance_scales(uniform: Tensor, beta: float, excess: float) -> Tensor:
    """omega on [1, 1 + excess] with density proportional to omega^-beta, by the inverse of its distribution."""
    if beta == 1.0:
        return torch.exp(uniform * math.log1p(excess))
    power = 1.0 - beta
    return torch.exp(torch.log1p(uniform * math.expm1(power * math.log1p(excess))) / power)


def active_scale(omega: Tensor, t: Tensor, t_min: Tensor, t_max: Tensor) -> Tensor:
    """omega inside the guidance interval, 1 outside; all (B,)."""
    return torch.where((t >= t_min) & (t <= t_max), omega, torch.ones_like(omega))
