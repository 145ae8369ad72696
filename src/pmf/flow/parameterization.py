"""What a head's output means, and the velocity it stands for.

z, t: noisy image and time; x: image; e: noise, of standard deviation s (``objective.noise_scale``);
z = (1 - t) x + t e; F: a head's output behind a pre-conditioner, image = c_skip(t) z + c_out(t) F.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

MIN_TIME = 0.05
"""Below it the division by t is frozen (official models/pmfDiT.py); this is the only place that knows."""

SIGMA_DATA = 0.5
"""Standard deviation of images in [-1, 1] that EDM and sCM assume (EDM table 1; sCM section 3)."""


class Parameterization(Protocol):
    """Maps between a head's output and a velocity; all images (B, C, H, W), t (B,), given by position."""

    def to_velocity(self, output: Tensor, z: Tensor, t: Tensor, /) -> Tensor:
        """The velocity that ``output`` stands for."""

    def to_image(self, output: Tensor, z: Tensor, t: Tensor, /) -> Tensor:
        """The image that ``output`` stands for."""

    def true_velocity(self, x: Tensor, e: Tensor, z: Tensor, t: Tensor, /) -> Tensor:
        """The velocity of the true image, through the same map as the network's output."""


class ImagePrediction:
    """The head predicts the image (pMF equation 9): velocity = (z - output) / max(t, 0.05)."""

    def to_velocity(self, output: Tensor, z: Tensor, t: Tensor, /) -> Tensor:
        """See :class:`Parameterization`."""
        return _image_to_velocity(self.to_image(output, z, t), z, t)

    def to_image(self, output: Tensor, _z: Tensor, _t: Tensor, /) -> Tensor:
        """See :class:`Parameterization`."""
        return output

    def true_velocity(self, x: Tensor, _e: Tensor, z: Tensor, t: Tensor, /) -> Tensor:
        """See :class:`Parameterization`. Below t = 0.05 this is not e - x."""
        return _image_to_velocity(x, z, t)


class VelocityPrediction:
    """The head predicts the velocity itself (MeanFlow, iMF, and the u-prediction row of pMF's ablation)."""

    def to_velocity(self, output: Tensor, _z: Tensor, _t: Tensor, /) -> Tensor:
        """See :class:`Parameterization`."""
        return output

    def to_image(self, output: Tensor, z: Tensor, t: Tensor, /) -> Tensor:
        """See :class:`Parameterization`."""
        return z - per_image(t) * output

    def true_velocity(self, x: Tensor, e: Tensor, _z: Tensor, _t: Tensor, /) -> Tensor:
        """See :class:`Parameterization`."""
        return e - x


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """image = skip z + out F, (B,) each."""

    skip: Tensor
    out: Tensor


@dataclass(frozen=True)
class PreconditionedPrediction(ImagePrediction):
    """The head predicts F, and image = c_skip(t) z + c_out(t) F (EDM equation 7); the rest is as for an image.

    These are the pre-conditioners that pMF's ablation names. We found no official code, so the coefficients below are
    our reading of the names; only the output is conditioned (EDM and sCM also scale the network's input, by c_in).
    """

    coefficients: Callable[[Tensor], Coefficients]

    def to_image(self, output: Tensor, z: Tensor, t: Tensor, /) -> Tensor:
        """See :class:`Parameterization`."""
        coefficients = self.coefficients(t)
        return per_image(coefficients.skip) * z + per_image(coefficients.out) * output


def linear_coefficients(t: Tensor) -> Coefficients:
    """c_skip = 1 - t, c_out = t: the image is z at t = 0 and F at t = 1, and the velocity z - F."""
    return Coefficients(skip=1 - t, out=t)


def edm_coefficients(t: Tensor, noise_scale: float) -> Coefficients:
    """EDM's (table 1), which makes the target of F unit variance, moved to this path.

    EDM sees y = x + sigma n, with n of unit variance, and D(y) = c_skip y + c_out F, where
    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2) and c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2).
    Here y = z / (1 - t) and sigma = t s / (1 - t); multiplied out, so that t = 1 is no special case.
    """
    signal, noise = (1 - t) * SIGMA_DATA, t * noise_scale
    variance = signal.square() + noise.square()
    return Coefficients(skip=signal * SIGMA_DATA / variance, out=noise * SIGMA_DATA / variance.sqrt())


def scm_coefficients(t: Tensor) -> Coefficients:
    """sCM's (TrigFlow, section 3): c_skip = cos(a), c_out = -sigma_data sin(a), at the angle a = t pi / 2.

    The exact change of path would be a = atan(t s / ((1 - t) sigma_data)) with z rescaled; that is EDM's again but for
    the sign of F, hence no ablation of its own. So the angle runs over its range as t does, and z stays as it is.
    """
    angle = t * (math.pi / 2)
    return Coefficients(skip=angle.cos(), out=-SIGMA_DATA * angle.sin())


# By the standard deviation of the run's noise.
PARAMETERIZATIONS: dict[str, Callable[[float], Parameterization]] = {
    "x": lambda _: ImagePrediction(),
    "u": lambda _: VelocityPrediction(),
    "linear": lambda _: PreconditionedPrediction(linear_coefficients),
    "edm": lambda noise_scale: PreconditionedPrediction(lambda t: edm_coefficients(t, noise_scale)),
    "scm": lambda _: PreconditionedPrediction(scm_coefficients),
}


def create_parameterization(name: str, noise_scale: float) -> Parameterization:
    """A row of ``PARAMETERIZATIONS``, for noise of this standard deviation."""
    return PARAMETERIZATIONS[name](noise_scale)


def per_image(scalar: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return scalar[:, None, None, None]


def _image_to_velocity(image: Tensor, z: Tensor, t: Tensor) -> Tensor:
    return (z - image) / per_image(t.clamp(MIN_TIME, 1.0))
