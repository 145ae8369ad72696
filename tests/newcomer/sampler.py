"""A sampler: one long step, and the rest of the evaluations in the last tenth of the time."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor

from pmf.flow.sampler import AverageVelocity


def late_steps(velocity: AverageVelocity, noise: Tensor, *, num_steps: int, **_: Any) -> Tensor:
    z = noise
    late = [0.1 * number / (num_steps - 1) for number in reversed(range(num_steps))] if num_steps > 1 else [0.0]
    for t, r in itertools.pairwise([1.0, *late]):
        z = z - (t - r) * velocity(z, t, r)
    return z
