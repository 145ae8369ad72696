"""An optimizer's rule: weights move by the signs of their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pmf.optim.rates import Rates, add_
from pmf.optim.rule import Moments, Rule, Settings


class SignDescent(Rule):
    def update(
        self, settings: Settings, rates: Rates, weights: list[Tensor], gradients: list[Tensor], moments: Moments
    ) -> None:
        add_(weights, list(torch._foreach_sign(gradients)), rates["lr"], -1.0)
