"""The Fréchet distance between two Gaussians (Heusel et al. 2017, arXiv 1706.08500, equation 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """``|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr sqrt(A B)`` for covariances A and B.

    For any factor ``A = F F^T`` the products A B and F^T B F have the same eigenvalues besides zeros, and those of the
    second come from a symmetric problem: real, and accurate where A or B is singular. A Cholesky factor is much cheaper
    than a square root; only where both are singular the eigenvectors of A are needed.

    Raises:
        ValueError: the two have different dimensions.
    """
    if a.dimension != b.dimension:
        raise ValueError(f"Gaussians of {a.dimension} and {b.dimension} dimensions")
    offset = a.mean - b.mean
    total_variance = a.covariance.trace() + b.covariance.trace()
    overlap = _trace_of_root(a.covariance, b.covariance)
    return float(offset @ offset + total_variance - 2 * overlap)


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
