"""The optimizer restated in float64 NumPy, one parameter at a time, straight from the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Reference:
    """One parameter under one rule; ``step`` returns the new weights."""

    weights: np.ndarray
    kind: str
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    updates: int = 0
    first: np.ndarray = field(init=False)
    second: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.weights = self.weights.astype(np.float64)
        self.first = np.zeros_like(self.weights)
        self.second = np.zeros_like(self.weights)

    def step(self, gradient: np.ndarray, lr: float) -> np.ndarray:
        self.updates += 1
        g = gradient.astype(np.float64)
        update = self._muon(g) if self.kind == "muon" else self._adam(g)
        self.weights = self.weights - lr * (update + self.weight_decay * self.weights)
        return self.weights

    def _muon(self, g: np.ndarray) -> np.ndarray:
        self.first = self.momentum * self.first + (1 - self.momentum) * g
        rows, columns = g.shape
        x = self._look_ahead(g, self.momentum)
        return max(1.0, rows / columns) ** 0.5 * newton_schulz(x, self.eps)

    def _adam(self, g: np.ndarray) -> np.ndarray:
        b1, b2 = self.betas
        self.first = b1 * self.first + (1 - b1) * g
        self.second = b2 * self.second + (1 - b2) * g * g
        mean = self._look_ahead(g, b1) if self.kind == "nadamw" else self.first / (1 - b1**self.updates)
        return mean / (np.sqrt(self.second / (1 - b2**self.updates)) + self.eps)

    def _look_ahead(self, g: np.ndarray, beta: float) -> np.ndarray:
        k = self.updates
        return beta * self.first / (1 - beta ** (k + 1)) + (1 - beta) * g / (1 - beta**k)


def newton_schulz(matrix: np.ndarray, eps: float = 1e-8, steps: int = 5) -> np.ndarray:
    """The polynomial applied to the singular values: no matrix product in common with the implementation."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / (math.sqrt(float((s**2).sum())) + eps)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
