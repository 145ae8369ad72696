"""The Fréchet distance between two Gaussians (Heusel et al. 2017, arXiv 1706.08500, equation 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pmf.errors import UserError

ROUNDING = 1e-5
"""How far a covariance may be from symmetric (of its largest entry) and from positive (of its trace).

Statistics stored in float32 are off by 2^-24 of each entry: then the eigenvalues are off by 2^-24 sqrt(D) of the trace
in all, 3e-6 for Inception's 2,048 features. A matrix that is further off was not rounded: it is no covariance.
"""
CANCELLATION = 1e-10
"""How far beyond ``ROUNDING`` it may be, as a share of the squared mean: the error of a difference of float64 sums.

It matters where images hardly differ: the covariance of 2,000 black images consists of such errors alone.
"""


@dataclass(frozen=True)
class Gaussian:
    """What FID keeps of a set of images.

    Attributes:
        mean: (D,) float64 on the CPU.
        covariance: (D, D) float64 on the CPU, normalised by N - 1.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.mean)


def require_gaussian(gaussian: Gaussian, where: str) -> None:
    """Finite values, and a covariance that is one: square, symmetric, positive semidefinite, up to ``ROUNDING``.

    Args:
        where: names the Gaussian in errors.

    Raises:
        UserError: what is wrong with it, and by how much.
    """
    mean, covariance = gaussian.mean, gaussian.covariance
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        shapes = f"the mean has shape {tuple(mean.shape)} and the covariance {tuple(covariance.shape)}"
        raise UserError(f"{where}: {shapes}, not (D,) and (D, D); make the statistics again")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{where}: holds values that are not finite; make the statistics again")
    largest, cancelled = float(covariance.abs().max()), CANCELLATION * float(mean @ mean)
    asymmetry = float((covariance - covariance.T).abs().max())
    if asymmetry > ROUNDING * largest + cancelled:
        raise UserError(
            f"{where}: the covariance is not symmetric: entries across its diagonal differ by {asymmetry:.3g}, the "
            f"largest is {largest:.3g}; make the statistics again"
        )
    if not torch.linalg.cholesky_ex(covariance).info:  # positive; eigenvalues would take ten times as long
        return
    values = torch.linalg.eigvalsh(covariance)
    if -float(values.clamp(max=0).sum()) > ROUNDING * float(values.clamp(min=0).sum()) + cancelled:
        raise UserError(
            f"{where}: the covariance is not positive semidefinite: its eigenvalues go from {float(values[0]):.3g} to "
            f"{float(values[-1]):.3g}; make the statistics again"
        )


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """``|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr sqrt(A B)`` for covariances A and B.

    For any factor ``A = F F^T`` the products A B and F^T B F have the same eigenvalues besides zeros, and those of the
    second come from a symmetric problem: real, and accurate where A or B is singular. A Cholesky factor is much cheaper
    than a square root; only where both are singular the eigenvectors of A are needed.

    Returns:
        0 or more: what rounding leaves below 0, of Gaussians that are nearly equal, is 0.

    Raises:
        UserError: one of the two is no Gaussian, see :func:`require_gaussian`; their values overflow.
        ValueError: the two have different dimensions.
    """
    require_gaussian(a, "statistics of the first set")
    require_gaussian(b, "statistics of the second set")
    if a.dimension != b.dimension:
        raise ValueError(f"Gaussians of {a.dimension} and {b.dimension} dimensions")
    offset = a.mean - b.mean
    total_variance = a.covariance.trace() + b.covariance.trace()
    overlap = _trace_of_root(a.covariance, b.covariance)
    distance = float(offset @ offset + total_variance - 2 * overlap)
    if not math.isfinite(distance):
        raise UserError("the distance of these sets is not finite: their features are too large for float64")
    return max(0.0, distance)


def _trace_of_root(a: Tensor, b: Tensor) -> Tensor:
    """tr sqrt(a b) of positive semidefinite a and b."""
    for one, other in ((a, b), (b, a)):
        factor, failed = torch.linalg.cholesky_ex(one)
        if not failed:
            return _root_sum(factor, other)
    values, vectors = torch.linalg.eigh(a)
    kept = values > values[-1] * len(a) * torch.finfo(a.dtype).eps  # the others are rounding
    return _root_sum(vectors[:, kept] * values[kept].sqrt(), b)


def _root_sum(factor: Tensor, other: Tensor) -> Tensor:
    # Rounding makes some zero eigenvalues negative.
    return torch.linalg.eigvalsh(factor.T @ other @ factor).clamp(min=0).sqrt().sum()
