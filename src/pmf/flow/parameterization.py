"""What a head's output means, and the velocity it stands for.

z, t: noisy image and time; x: image; e: noise, of the standard deviation of the run; z = (1 - t) x + t e.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

MIN_TIME = 0.05
"""Below it the division by t is frozen (official models/pmfDiT.py); this is the only place that knows."""


class Parameterization(Protocol):
    """Maps between a head's output and a velocity; all images (B, C, H, W), t (B,)."""

    def to_velocity(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The velocity that ``output`` stands for."""

    def to_image(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The image that ``output`` stands for."""

    def true_velocity(self, x: Tensor, e: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The velocity of the true image, through the same map as the network's output."""


class ImagePrediction:
    """The head predicts the image (pMF equation 9): velocity = (z - output) / max(t, 0.05)."""

    def to_velocity(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """See :class:`Parameterization`."""
        return (z - output) / per_image(t.clamp(MIN_TIME, 1.0))

    def to_image(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """See :class:`Parameterization`."""
        return output

    def true_velocity(self, x: Tensor, e: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """See :class:`Parameterization`. Below t = 0.05 this is not e - x."""
        return self.to_velocity(x, z, t)


class VelocityPrediction:
    """The head predicts the velocity itself (MeanFlow, iMF, and the u-prediction row of pMF's ablation)."""

    def to_velocity(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """See :class:`Parameterization`."""
        return output

    def to_image(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """See :class:`Parameterization`."""
        return z - per_image(t) * output

    def true_velocity(self, x: Tensor, e: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """See :class:`Parameterization`."""
        return e - x


PARAMETERIZATIONS: dict[str, Parameterization] = {"x": ImagePrediction(), "u": VelocityPrediction()}


def per_image(scalar: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return scalar[:, None, None, None]
