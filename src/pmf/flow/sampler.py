"""From noise to images in one step or a few: z_r = z_t - (t - r) u(z_t, r, t) (MeanFlow algorithm 2; official pmf.py).

t = 1 is noise and t = 0 the image; u(z_t, r, t) is the average velocity over [r, t]. To step otherwise, add a function
like :func:`equal_steps` and a line to ``SAMPLERS`` in ``options.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pmf.flow.options import SAMPLERS
from pmf.flow.parameterization import Parameterization
from pmf.net.interface import Network, constant_conditions, head
from pmf.tables import find_row


class AverageVelocity(Protocol):
    """The network under guidance, as a sampler sees it; each call is one network evaluation."""

    def __call__(self, z: Tensor, t: float, r: float) -> Tensor:
        """u(z_t, r, t) (B, C, H, W) of z at time t, (B, C, H, W); 0 <= r <= t <= 1."""


def equal_steps(velocity: AverageVelocity, noise: Tensor, *, num_steps: int, **_: Any) -> Tensor:
    """Equal steps of t from 1 to 0.

    Args:
        velocity: the network under guidance.
        noise: (B, C, H, W), z at t = 1.
        num_steps: network evaluations.
        **_: the other sampling options, which every sampler is given; this one uses none of them.

    Returns:
        (B, C, H, W), z at t = 0.
    """
    z = noise
    times = torch.linspace(1.0, 0.0, num_steps + 1, dtype=z.dtype).tolist()
    for t, r in itertools.pairwise(times):
        z = z - (t - r) * velocity(z, t, r)
    return z


@torch.no_grad()
def generate(
    network: Network,
    parameterization: Parameterization,
    noise: Tensor,
    labels: Tensor,
    *,
    omega: float | Tensor,
    interval: Sequence[float] | Sequence[Tensor],
    num_steps: int = 1,
    sampler: str = "equal_steps",
    **options: Any,
) -> Tensor:
    """Noise to images.

    Args:
        noise: (B, C, H, W) normal with the noise scale that the network was trained with.
        labels: (B,) int64.
        omega: guidance scale, >= 1; a tensor (B,) has one for each image.
        interval: guidance interval [t_min, t_max], two numbers or two tensors (B,).
        num_steps: network evaluations.
        sampler: a row of ``SAMPLERS``.
        **options: what else the sampling section has; for the sampler.

    Returns:
        (B, C, H, W) images, in [-1, 1] up to overshoot.
    """

    def velocity(z: Tensor, t: float, r: float) -> Tensor:
        conditions = constant_conditions(labels, z, t=t, h=t - r, omega=omega, t_min=interval[0], t_max=interval[1])
        return parameterization.to_velocity(head(network(z, conditions, heads="u").u), z, conditions.t)

    images: Tensor = find_row(SAMPLERS, sampler)(velocity, noise, num_steps=num_steps, **options)
    return images
