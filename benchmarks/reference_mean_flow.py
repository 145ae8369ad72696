"""The mean flow step as the paper and the official JAX code write it: oracle.

Literal and slow on purpose: guidance passes with and without label over every row, ``torch.func.jvp`` around the whole
network over every row. It shares no mathematics with pmf.flow; only the raw draws are common. Notation as in
pmf/flow/mean_flow.py; source: official meanflow.py, ``sample_tr``, ``guidance_fn``, ``cond_drop`` and ``forward``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pmf.flow.draws import StandardDraws
from pmf.flow.options import MeanFlowOptions
from pmf.net.interface import Conditions


@dataclass(frozen=True, kw_only=True)
class MeanFlowStep:
    """Loss (scalar), the squared error of each row, and the fields of the official code."""

    loss: Tensor
    raw_u: Tensor
    fields: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MeanFlowFault:
    """Deliberate mistakes, so that a comparison can show that it would notice them."""

    derivative_factor: float = 1.0
    tangent_is_true_velocity: bool = False
    tangent_before_drop: bool = False
    kappa_on_the_wrong_side: bool = False
    sorted_last: bool = False


def mean_flow_step(
    network: nn.Module,
    settings: MeanFlowOptions,
    null_label: int,
    images: Tensor,
    labels: Tensor,
    draws: StandardDraws,
    fault: MeanFlowFault | None = None,
) -> MeanFlowStep:
    """One micro-batch.

    Args:
        images: (B, C, H, W).
        labels: (B,) int64.
        draws: raw numbers; everything derived from them is derived here again.
    """
    fault = fault or MeanFlowFault()
    x, e, rows = images, draws.normal_e, images.shape[0]

    def column(scalar: Tensor) -> Tensor:
        return scalar.to(x)[:, None, None, None]  # (B, 1, 1, 1)

    def u_of(z: Tensor, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        one = torch.ones(rows).to(x)
        told = Conditions(t=t.flatten(), h=h.flatten(), omega=one, t_min=0 * one, t_max=one, labels=y)
        output: Tensor = network(z, told, heads="u").u
        return output

    if settings.time_distribution == "uniform":
        t, r = column(draws.uniform_t), column(draws.uniform_r)
    else:
        t = torch.sigmoid(column(draws.normal_t) * settings.time_std + settings.time_mean)
        r = torch.sigmoid(column(draws.normal_r) * settings.time_std + settings.time_mean)
    fm = column(torch.arange(rows)) < int(rows * settings.data_proportion)
    if fault.sorted_last:
        r = torch.where(fm, t, r)
    t, r = torch.maximum(t, r), torch.minimum(t, r)
    r = torch.where(fm, t, r)

    z = (1 - t) * x + t * e
    v_t = e - x
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    null = torch.full_like(labels, null_label)
    t_start, t_end = settings.guidance_interval
    inside = (t >= t_start) & (t <= t_end)
    omega = torch.where(inside, settings.guidance_scale * one, one)
    kappa = torch.where(inside, settings.guidance_mixing * one, zero)
    with torch.no_grad():
        v_uncond = u_of(z, t, zero, null)
        v_cond = u_of(z, t, zero, labels)
    if settings.guidance_mixing == 0:
        v_g = v_uncond + omega * (v_t - v_uncond)
    elif fault.kappa_on_the_wrong_side:
        v_g = omega * v_t + kappa * v_uncond + (1 - omega - kappa) * v_cond
    else:
        v_g = omega * v_t + (1 - omega - kappa) * v_uncond + kappa * v_cond

    dropped = column(torch.arange(rows)) < (draws.uniform_drop < settings.label_drop).sum()
    y = torch.where(dropped.flatten(), null, labels)
    before, v_g = v_g, torch.where(dropped, v_t, v_g)

    tangent = v_t if fault.tangent_is_true_velocity else before if fault.tangent_before_drop else v_g
    jvp: Any = torch.func.jvp(lambda z, t, r: u_of(z, t, t - r, y), (z, t, r), (tangent, one, zero))
    u, du_dt = jvp
    target = (v_g - (t - r).clip(0, 1) * du_dt * fault.derivative_factor).detach()

    raw_u = ((u - target) ** 2).sum((1, 2, 3))
    loss = (raw_u / ((raw_u + settings.adaptive_epsilon) ** settings.adaptive_power).detach()).mean()
    fields = {"z": z, "v_t": v_t, "v_g": v_g, "u": u, "du_dt": du_dt, "target": target}
    return MeanFlowStep(loss=loss, raw_u=raw_u, fields=fields)
