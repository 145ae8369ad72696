"""A rule of a newcomer: Lion (arXiv 2302.06675), and one for matrices, as a file beside the library would have them."""

from __future__ import annotations

import torch
from torch import Tensor

from pmf.optim.rates import Rates, add_
from pmf.optim.rule import MatrixRule, Moments, Rule, Settings


class Lion(Rule):
    """weights -= lr sign(b1 m + (1 - b1) g); then m = b2 m + (1 - b2) g."""

    moments = ("momentum",)

    def update(
        self, settings: Settings, rates: Rates, weights: list[Tensor], gradients: list[Tensor], moments: Moments
    ) -> None:
        b1, b2 = settings["betas"]
        directions = list(torch._foreach_lerp(moments["momentum"], gradients, 1 - b1))
        torch._foreach_sign_(directions)
        add_(weights, directions, rates["lr"], -1.0)
        torch._foreach_lerp_(moments["momentum"], gradients, 1 - b2)


class UnitMatrices(MatrixRule):
    """Matrices move against their gradients over the gradients' spectral norms, and all else as Lion has it."""

    rest = "lion"

    def advance(self, settings: Settings, rates: Rates, gradients: list[Tensor], moments: Moments) -> list[Tensor]:
        return gradients

    def direct(self, settings: Settings, matrices: Tensor) -> Tensor:
        return matrices / torch.linalg.matrix_norm(matrices, ord=2, keepdim=True)

    def factor(self, rows: int, columns: int) -> float:
        return rows**0.5
