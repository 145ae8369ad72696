"""A covariance, and matrices that are none, with what is said of each."""

from __future__ import annotations

import math

import numpy as np
import torch


def with_eigenvalue(value: float) -> torch.Tensor:
    """A covariance of 20 dimensions and a trace of about 20, but for one eigenvalue."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 20)))
    return torch.from_numpy((basis * np.array([value, *np.linspace(0.5, 1.5, 19)])) @ basis.T)


def changed(matrix: torch.Tensor, row: int, column: int, value: float) -> torch.Tensor:
    matrix = matrix.clone()
    matrix[row, column] += value
    return matrix


GOOD = with_eigenvalue(0.7)
NO_COVARIANCES = {
    "negative": (-GOOD, "not positive semidefinite: its eigenvalues go from -1.5 to -0.5"),
    "one eigenvalue": (with_eigenvalue(-0.01), "not positive semidefinite: its eigenvalues go from -0.01 to 1.5"),
    "a correlation above 1": (changed(changed(GOOD, 0, 9, 3), 9, 0, 3), "not positive semidefinite"),
    "many small eigenvalues": (GOOD - 0.501 * torch.eye(20), "not positive semidefinite"),
    "upper triangle": (GOOD.triu(), "not symmetric: entries across its diagonal differ by"),
    "lower triangle": (GOOD.tril(), "not symmetric: entries across its diagonal differ by"),
    "one entry": (changed(GOOD, 3, 11, 1e-3), "differ by 0.001, the largest is 1.13"),
    "a factor": (torch.linalg.cholesky(GOOD), "not symmetric"),
    "not square": (GOOD[:, :19], "the mean has shape (20,) and the covariance (20, 19), not (D,) and (D, D)"),
    "a vector": (GOOD.diag(), "the covariance (20,), not (D,) and (D, D)"),
    "another size": (GOOD[:19, :19], "the covariance (19, 19), not (D,) and (D, D)"),
    "NaN": (changed(GOOD, 2, 2, math.nan), "holds values that are not finite"),
    "infinite": (changed(GOOD, 2, 2, math.inf), "holds values that are not finite"),
}
