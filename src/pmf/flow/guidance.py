"""Guidance targets: the v head's own conditional and unconditional velocities, without gradient.

v_c, v_u: velocity predicted with the label and with the null label, both at h = 0 and interval [0, 1];
v_t: velocity of the true image; v_g: guided target (pMF equation 12, iMF section 4; official pmf.py guidance_fn).

The official code runs three passes of both heads over all rows. Exactly the same targets need less:
the conditional scale is active_scale(omega) already in the first pass; on flow-matching rows v_c is what the training
pass itself computes (same inputs); v_u matters only where the scale is not 1 and the label is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pmf.flow.draws import Draws, active_scale
from pmf.flow.network import Network, head
from pmf.flow.parameterization import Parameterization, per_image


@dataclass(frozen=True, kw_only=True)
class GuidanceVelocities:
    """Velocities of the guidance pass, without graph.

    Attributes:
        conditional: (B - F, C, H, W) v_c of the rows after the F flow-matching ones, with the label before any drop.
        unconditional: (U, C, H, W) v_u of ``draws.unconditional_rows``.
    """

    conditional: Tensor
    unconditional: Tensor


def guidance_velocities(
    network: Network,
    parameterization: Parameterization,
    z: Tensor,
    labels: Tensor,
    null_label: int,
    draws: Draws,
    *,
    static_shapes: bool = False,
) -> GuidanceVelocities:
    """One pass of the v head over the rows that need v_c and the rows that need v_u.

    Args:
        z: (B, C, H, W) noisy images.
        labels: (B,) labels before the drop.
        null_label: the label that means "no class".
        static_shapes: fill the pass with rows that nobody needs, up to the most there can be: (B - F) + B.
    """
    first = draws.num_flow_matching
    rows = draws.unconditional_rows
    needed = len(rows)
    if static_shapes:
        rows = torch.cat((rows, rows.new_zeros(len(z) - needed)))
    omega = active_scale(draws.omega, draws.t, draws.t_min, draws.t_max)
    z_both = torch.cat((z[first:], z[rows]))
    t_both = torch.cat((draws.t[first:], draws.t[rows]))
    omega_both = torch.cat((omega[first:], torch.ones_like(omega[rows])))
    labels_both = torch.cat((labels[first:], torch.full_like(labels[rows], null_label)))
    if not len(z_both):
        return GuidanceVelocities(conditional=z_both, unconditional=z_both)
    zero, one = torch.zeros_like(t_both), torch.ones_like(t_both)
    with torch.no_grad():
        output = network(z_both, zero, omega_both, zero, one, labels_both, heads="v")
    v = parameterization.to_velocity(head(output.v), z_both, t_both)
    split = z.shape[0] - first
    return GuidanceVelocities(conditional=v[:split], unconditional=v[split : split + needed])


def guided_target(v_t: Tensor, v_c: Tensor, unconditional: Tensor, draws: Draws) -> Tensor:
    """v_g = v_t + (1 - 1 / omega) (v_c - v_u); v_t itself where the label is dropped or the scale is 1.

    Args:
        v_t, v_c: (B, C, H, W).
        unconditional: (U, C, H, W), v_u of ``draws.unconditional_rows``.
    """
    rows = draws.unconditional_rows
    weight = per_image(1 - 1 / draws.omega[rows])
    return v_t.index_add(0, rows, weight * (v_c[rows] - unconditional))
