"""Guidance: the v head's own conditional and unconditional velocities, and the target that they make.

v_c, v_u: velocity predicted with the label and with the null label, both at h = 0 and interval [0, 1], without
gradient; v_t: velocity of the true image; v_g: guided target (pMF equation 12, iMF section 4; official pmf.py
guidance_fn).

The official code runs three passes of both heads over all rows. Exactly the same targets need less:
the conditional scale is active_scale(omega) already in the first pass; on flow-matching rows v_c is what the training
pass itself computes (same inputs); v_u matters only where the scale is not 1 and the label is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pmf.flow.draws import Draws, active_scale
from pmf.flow.parameterization import Parameterization, per_image
from pmf.net.interface import Conditions, Network, head


def predicted_velocities(
    network: Network,
    parameterization: Parameterization,
    z: Tensor,
    labels: Tensor,
    null_label: int,
    draws: Draws,
) -> tuple[Tensor, Tensor]:
    """v_c and v_u, by one pass of the v head over the rows that need one of them.

    Args:
        z: (B, C, H, W) noisy images.
        labels: (B,) labels before the drop.
        null_label: the label that means "no class".

    Returns:
        v_c of the rows after the F flow-matching ones, with the label before any drop: (B - F, C, H, W); and v_u of
        ``draws.unconditional_rows``: (U, C, H, W). Without a graph.
    """
    first = draws.num_flow_matching
    rows = draws.unconditional_rows
    omega = active_scale(draws.omega, draws.t, draws.t_min, draws.t_max)
    z_both = torch.cat((z[first:], z[rows]))
    t_both = torch.cat((draws.t[first:], draws.t[rows]))
    zero, one = torch.zeros_like(t_both), torch.ones_like(t_both)
    conditions = Conditions(
        t=t_both,
        h=zero,
        omega=torch.cat((omega[first:], torch.ones_like(omega[rows]))),
        t_min=zero,
        t_max=one,
        labels=torch.cat((labels[first:], torch.full_like(labels[rows], null_label))),
    )
    with torch.no_grad():
        output = network(z_both, conditions, heads="v")
    v = parameterization.to_velocity(head(output.v), z_both, t_both)
    split = z.shape[0] - first
    return v[:split], v[split:]


def guided_velocity(v_t: Tensor, v_c: Tensor, v_u: Tensor, draws: Draws) -> Tensor:
    """v_g = v_t + (1 - 1 / omega) (v_c - v_u); v_t itself where the label is dropped or the scale is 1.

    Args:
        v_t, v_c: (B, C, H, W).
        v_u: (U, C, H, W), of ``draws.unconditional_rows``.
    """
    rows = draws.unconditional_rows
    return v_t.index_add(0, rows, per_image(draws.unconditional_weight) * (v_c[rows] - v_u))
