"""The improved mean flow step as the paper and the official JAX code write it: oracle.

Literal and slow on purpose: three guidance passes through both heads over every row, ``torch.func.jvp`` around the
whole network over every row. It shares no mathematics with pmf.flow; only the raw draws are common. Notation as in
pmf/flow/improved_mean_flow.py; source: official imf.py, ``sample_tr``, ``guidance_fn``, ``cond_drop`` and ``forward``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pmf.flow.draws import StandardDraws
from pmf.flow.options import ImprovedMeanFlowOptions
from pmf.net.interface import Conditions


@dataclass(frozen=True, kw_only=True)
class ImprovedMeanFlowStep:
    """Loss (scalar), the squared errors of each row, and the fields of the official code."""

    loss: Tensor
    raw_u: Tensor
    raw_v: Tensor
    fields: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ImprovedMeanFlowFault:
    """Deliberate mistakes, so that a comparison can show that it would notice them."""

    derivative_factor: float = 1.0
    tangent_is_true_velocity: bool = False
    tangent_at_the_full_scale: bool = False
    no_guidance: bool = False
    sorted_last: bool = False


def improved_mean_flow_step(
    network: nn.Module,
    settings: ImprovedMeanFlowOptions,
    null_label: int,
    images: Tensor,
    labels: Tensor,
    draws: StandardDraws,
    fault: ImprovedMeanFlowFault | None = None,
) -> ImprovedMeanFlowStep:
    """One micro-batch.

    Args:
        images: (B, C, H, W).
        labels: (B,) int64.
        draws: raw numbers; everything derived from them is derived here again.
    """
    fault = fault or ImprovedMeanFlowFault()
    x, e, rows = images, draws.normal_e, images.shape[0]

    def column(scalar: Tensor) -> Tensor:
        return scalar.to(x)[:, None, None, None]  # (B, 1, 1, 1)

    def u_and_v(
        z: Tensor, t: Tensor, h: Tensor, omega: Tensor, t_min: Tensor, t_max: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        told = {"t": t, "h": h, "omega": omega, "t_min": t_min, "t_max": t_max}
        out = network(z, Conditions(**{name: value.flatten() for name, value in told.items()}, labels=y))
        return out.u, out.v

    t = torch.sigmoid(column(draws.normal_t) * settings.time_std + settings.time_mean)
    r = torch.sigmoid(column(draws.normal_r) * settings.time_std + settings.time_mean)
    fm = column(torch.arange(rows)) < int(rows * settings.data_proportion)
    if fault.sorted_last:
        r = torch.where(fm, t, r)
    t, r = torch.maximum(t, r), torch.minimum(t, r)
    r = torch.where(fm, t, r)

    z = (1 - t) * x + t * e
    v_t = e - x
    t_min = torch.where(fm, 0.0, 0.5 * column(draws.uniform_t_min))
    t_max = torch.where(fm, 1.0, 0.5 + 0.5 * column(draws.uniform_t_max))
    top = torch.log1p(torch.tensor(settings.guidance_max, dtype=x.dtype, device=x.device))
    q, power = column(draws.uniform_omega), 1 - settings.guidance_beta
    omega = torch.exp(q * top) if power == 0 else torch.exp(torch.log1p(q * torch.expm1(power * top)) / power)

    zero, one = torch.zeros_like(t), torch.ones_like(t)
    null = torch.full_like(labels, null_label)
    inside = torch.where((t >= t_min) & (t <= t_max), omega, 1.0)
    with torch.no_grad():
        v_c_full = u_and_v(z, t, zero, omega, zero, one, labels)[1]
        v_u = u_and_v(z, t, zero, one, zero, one, null)[1]
        v_c = u_and_v(z, t, zero, inside, zero, one, labels)[1]
        v_g = torch.where(fm, v_t + (1 - 1 / omega) * (v_c_full - v_u), v_t + (1 - 1 / inside) * (v_c - v_u))

    dropped = column(torch.arange(rows)) < (draws.uniform_drop < settings.label_drop).sum()
    y = torch.where(dropped.flatten(), null, labels)
    v_g = torch.where(dropped, v_t, v_g)
    if fault.no_guidance:
        v_g = v_t

    def u_function(z: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return u_and_v(z, t, t - r, omega, t_min, t_max, y)

    tangent = v_t if fault.tangent_is_true_velocity else v_c_full if fault.tangent_at_the_full_scale else v_c
    jvp: Any = torch.func.jvp(u_function, (z, t, r), (tangent, one, zero), has_aux=True)
    u, du_dt, v = jvp
    big_v = u + (t - r) * du_dt.detach() * fault.derivative_factor

    def adaptive(loss: Tensor) -> Tensor:
        return loss / ((loss + settings.adaptive_epsilon) ** settings.adaptive_power).detach()

    raw_u = ((big_v - v_g) ** 2).sum((1, 2, 3))
    raw_v = ((v - v_g) ** 2).sum((1, 2, 3))
    loss = (adaptive(raw_u) + adaptive(raw_v)).mean()
    fields = {"z": z, "v_t": v_t, "v_c": v_c, "v_u": v_u, "v_g": v_g, "u": u, "v": v, "du_dt": du_dt, "V": big_v}
    return ImprovedMeanFlowStep(loss=loss, raw_u=raw_u, raw_v=raw_v, fields=fields)
