"""One-step (or few-step) generation: z_r = z_t - (t - r) u(z_t, r, t) (MeanFlow algorithm 2; official pmf.py)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pmf.flow.network import Network, head
from pmf.flow.parameterization import Parameterization


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
    one = torch.ones_like(z[:, 0, 0, 0])
    times = torch.linspace(1.0, 0.0, num_steps + 1, dtype=z.dtype).tolist()
    for t, r in itertools.pairwise(times):
        output = network(z, one * (t - r), one * omega, one * interval[0], one * interval[1], labels, heads="u")
        z = z - (t - r) * parameterization.to_velocity(head(output.u), z, one * t)
    return z
