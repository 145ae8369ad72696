"""One-step (or few-step) generation: z_r = z_t - (t - r) u(z_t, r, t) (MeanFlow algorithm 2; official pmf.py)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pmf.flow.parameterization import Parameterization
from pmf.net.interface import Network, constant_conditions, head


@torch.no_grad()
def generate(
    network: Network,
    parameterization: Parameterization,
    noise: Tensor,
    labels: Tensor,
    *,
    omega: float,
    interval: tuple[float, float],
    num_steps: int = 1,
) -> Tensor:
    """Noise to images.

    Args:
        noise: (B, C, H, W) normal with the noise scale that the network was trained with.
        labels: (B,) int64.
        omega: guidance scale, >= 1.
        interval: guidance interval (t_min, t_max).
        num_steps: network evaluations, over equal steps of t from 1 to 0.

    Returns:
        (B, C, H, W) images, in [-1, 1] up to overshoot.
    """
    z = noise
    times = torch.linspace(1.0, 0.0, num_steps + 1, dtype=z.dtype).tolist()
    for t, r in itertools.pairwise(times):
        conditions = constant_conditions(labels, z, t=t, h=t - r, omega=omega, t_min=interval[0], t_max=interval[1])
        output = network(z, conditions, heads="u")
        z = z - (t - r) * parameterization.to_velocity(head(output.u), z, conditions.t)
    return z
