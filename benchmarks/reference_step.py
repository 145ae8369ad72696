"""The pixel mean flow step as the papers and the official JAX code write it: oracle and baseline.

Literal and slow on purpose: three guidance passes through both heads over every row, ``torch.func.jvp`` around the
whole network over every row, attention written out. It shares no mathematics with pmf.flow; only the raw draws are
common. Notation as in pmf/flow/pixel_mean_flow.py; source: official pmf.py, ``guidance_fn`` and ``forward``. The
ablations (other outputs, r = 0, label drop row by row) are written into it at the places where they act.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmf.flow.draws import StandardDraws
from pmf.flow.objective import PerceptualDistances
from pmf.flow.options import PixelMeanFlowOptions
from pmf.net.interface import Conditions
from pmf.net.pixel_transformer import PixelTransformer


@dataclass(frozen=True, kw_only=True)
class ReferenceStep:
    """Loss (scalar) and the fields that negative controls tamper with."""

    loss: Tensor
    raw_u: Tensor
    raw_v: Tensor


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Deliberate mistakes, so that a comparison can show that it would notice them."""

    derivative_factor: float = 1.0
    tangent_is_true_velocity: bool = False
    no_guidance: bool = False
    sorted_first: bool = False
    denoised_by_compound: bool = False
    perceptual_on_all_rows: bool = False


def reference_step(
    network: PixelTransformer,
    settings: PixelMeanFlowOptions,
    null_label: int,
    images: Tensor,
    labels: Tensor,
    draws: StandardDraws,
    fault: Fault | None = None,
    perceptual: PerceptualDistances | None = None,
    perceptual_max_t: float = 1.0,
) -> ReferenceStep:
    """One micro-batch.

    Args:
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64.
        draws: raw numbers; everything derived from them is derived here again.
        perceptual: distances, taken of every row and masked afterwards.
    """
    fault = fault or Fault()
    x, rows = images, images.shape[0]

    def column(scalar: Tensor) -> Tensor:
        return scalar.to(x)[:, None, None, None]  # (B, 1, 1, 1)

    def u_and_v(
        z: Tensor, t: Tensor, h: Tensor, omega: Tensor, t_min: Tensor, t_max: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        told = {"t": t, "h": h, "omega": omega, "t_min": t_min, "t_max": t_max}
        out = network(z, Conditions(**{name: value.flatten() for name, value in told.items()}, labels=y))
        return output_to_velocity(settings, out.u, z, t), output_to_velocity(settings, out.v, z, t)

    t = torch.sigmoid(column(draws.normal_t) * settings.time_std + settings.time_mean)
    r = torch.sigmoid(column(draws.normal_r) * settings.time_std + settings.time_mean)
    uniform = column(draws.uniform_mask) < settings.uniform_time_fraction
    t = torch.where(uniform, column(draws.uniform_t), t)
    r = torch.where(uniform, column(draws.uniform_r), r)
    if settings.r_distribution == "zero":
        r = 0 * r
    fm = column(torch.arange(rows)) < int(rows * settings.data_proportion)
    if fault.sorted_first:
        t, r = torch.maximum(t, r), torch.minimum(t, r)
    r = torch.where(fm, t, r)
    t, r = torch.maximum(t, r), torch.minimum(t, r)

    e = draws.normal_e * settings.noise_scale
    z = (1 - t) * x + t * e
    v_t = e - x if settings.parameterization == "u" else (z - x) / t.clip(0.05, 1.0)
    t_min = torch.where(fm, 0.0, 0.5 * column(draws.uniform_t_min))
    t_max = torch.where(fm, 1.0, 0.5 + 0.5 * column(draws.uniform_t_max))
    top = torch.log1p(torch.tensor(settings.guidance_max, dtype=x.dtype, device=x.device))
    q, power = column(draws.uniform_omega), 1 - settings.guidance_beta
    omega = torch.exp(q * top) if power == 0 else torch.exp(torch.log1p(q * torch.expm1(power * top)) / power)

    zero, one = torch.zeros_like(t), torch.ones_like(t)
    null = torch.full_like(labels, null_label)
    with torch.no_grad():
        v_c = u_and_v(z, t, zero, omega, zero, one, labels)[1]
        v_u = u_and_v(z, t, zero, one, zero, one, null)[1]
        v_g_fm = v_t + (1 - 1 / omega) * (v_c - v_u)
        inside = torch.where((t >= t_min) & (t <= t_max), omega, 1.0)
        v_c = u_and_v(z, t, zero, inside, zero, one, labels)[1]
        v_g = torch.where(fm, v_g_fm, v_t + (1 - 1 / inside) * (v_c - v_u))

    dropped = column(draws.uniform_drop) < settings.label_drop
    if settings.label_drop_rows == "first":
        dropped = column(torch.arange(rows)) < dropped.sum()
    y = torch.where(dropped.flatten(), null, labels)
    v_g = torch.where(dropped, v_t, v_g)
    if fault.no_guidance:
        v_g = v_t

    def u_function(z: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return u_and_v(z, t, t - r, omega, t_min, t_max, y)

    tangent = v_t if fault.tangent_is_true_velocity else v_c
    jvp: Any = torch.func.jvp(u_function, (z, t, r), (tangent, one, zero), has_aux=True)
    u, du_dt, v = jvp
    big_v = u + (t - r) * du_dt.detach() * fault.derivative_factor

    def adaptive(loss: Tensor) -> Tensor:
        return loss / ((loss + settings.adaptive_epsilon) ** settings.adaptive_power).detach()

    raw_u = ((big_v - v_g) ** 2).sum((1, 2, 3))
    raw_v = ((v - v_g) ** 2).sum((1, 2, 3))
    loss = adaptive(raw_u) + adaptive(raw_v)
    if perceptual is not None:
        denoised = z - t * (big_v if fault.denoised_by_compound else u)
        below = (t.flatten() < perceptual_max_t) | fault.perceptual_on_all_rows
        for name, distance in perceptual(denoised, x, draws.uniform_crop.to(x)).items():
            loss = loss + perceptual.factors[name] * adaptive(torch.where(below, distance, 0.0))
    return ReferenceStep(loss=loss.mean(), raw_u=raw_u, raw_v=raw_v)


def output_to_velocity(settings: PixelMeanFlowOptions, out: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """What a head's output stands for, each in the variables of its own paper; t is (B, 1, 1, 1)."""
    sigma_d, sigma = 0.5, t * settings.noise_scale / (1 - t)
    if settings.parameterization == "u":
        return out
    if settings.parameterization == "linear":
        out = (1 - t) * z + t * out
    elif settings.parameterization == "edm":  # table 1, of y = x + sigma n
        skip = sigma_d**2 / (sigma**2 + sigma_d**2)
        out = skip * (z / (1 - t)) + sigma * sigma_d / (sigma**2 + sigma_d**2) ** 0.5 * out
    elif settings.parameterization == "scm":
        out = torch.cos(torch.pi * t / 2) * z - torch.sin(torch.pi * t / 2) * sigma_d * out
    return (z - out) / t.clip(0.05, 1.0)
