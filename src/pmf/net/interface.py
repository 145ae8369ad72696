"""What training and sampling ask of a network, and what it answers. Any module that does this can be trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor

Heads = Literal["u", "v", "uv"]
"""Which heads to compute: u predicts over [r, t], v at t."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a network is given beside z; it uses the fields that it knows.

    Attributes:
        t: (B,) time, 1 is noise.
        h: (B,) t - r, where r <= t is the time that u leads to.
        omega: (B,) guidance scale, >= 1.
        t_min, t_max: (B,) interval of t in which the scale is active.
        labels: (B,) int64 in [0, num_classes]; num_classes is the null label.
    """

    t: Tensor
    h: Tensor
    omega: Tensor
    t_min: Tensor
    t_max: Tensor
    labels: Tensor

    def last(self, rows: int) -> Conditions:
        """The last ``rows`` rows."""
        start = len(self.t) - rows
        return Conditions(**{f.name: getattr(self, f.name)[start:] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Tangent:
    """The direction in which u of the last K rows is differentiated.

    Attributes:
        z: (K, C, H, W) rate of z.
        t, h: (K,) rates of t and of h.
    """

    z: Tensor
    t: Tensor
    h: Tensor


@dataclass
class HeadOutputs:
    """Outputs of the heads that were asked for; the others are None.

    Attributes:
        u, v: (B, C, H, W).
        u_tangent: (K, C, H, W), the derivative of u's last K rows, without a graph; None unless it was asked for.
    """

    u: Tensor | None = None
    v: Tensor | None = None
    u_tangent: Tensor | None = None


class Network(Protocol):
    """Noisy images and conditions to what the heads say.

    A network that can be given a ``tangent`` says so by an attribute ``carries_tangents``.
    """

    def __call__(
        self, z: Tensor, conditions: Conditions, heads: Heads = "uv", tangent: Tangent | None = None
    ) -> HeadOutputs:
        """Run the heads that are asked for on z, (B, C, H, W)."""


def head(output: Tensor | None) -> Tensor:
    """A field of :class:`HeadOutputs` that was asked for."""
    assert output is not None, "the network left out a head that was asked for"
    return output


def constant_conditions(labels: Tensor, like: Tensor, **values: float | Tensor) -> Conditions:
    """The same numbers for all rows, or one for each in a tensor (B,), with the dtype and device of ``like``."""
    row = torch.ones(labels.shape, dtype=like.dtype, device=like.device)
    return Conditions(labels=labels, **{name: row * value for name, value in values.items()})
