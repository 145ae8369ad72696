"""Mean and covariance of features that arrive in batches on several processes."""

from __future__ import annotations

import torch
from torch import Tensor

from pmf.distributed.world import World
from pmf.evaluation.frechet import Gaussian


class FeatureMoments:
    """Sums over this process's features: n, sum f and sum f f^T, in float64."""

    def __init__(self, dimension: int, device: torch.device) -> None:
        self._count = torch.zeros((), dtype=torch.float64, device=device)
        self._sum = torch.zeros(dimension, dtype=torch.float64, device=device)
        self._products = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Add features, (B, D) of any float type."""
        features = features.double()
        self._count += len(features)
        self._sum += features.sum(0)
        self._products.addmm_(features.T, features)

    def pooled(self, world: World) -> Gaussian:
        """The Gaussian of all processes' features, the same on each; called by all of them once, at the end."""
        for part in (self._count, self._sum, self._products):
            world.add_up(part)
        mean = self._sum / self._count
        covariance = (self._products - self._count * torch.outer(mean, mean)) / (self._count - 1)
        return Gaussian(mean=mean.cpu(), covariance=covariance.cpu())
