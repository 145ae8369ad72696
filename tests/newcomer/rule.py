"""An optimizer's rule: weights move by the signs of their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pmf.optim.rule import Moments, Rule, Settings


class SignDescent(Rule):
    def update(self, settings: Settings, weights: list[Tensor], gradients: list[Tensor], moments: Moments) -> None:
        torch._foreach_add_(weights, torch._foreach_sign(gradients), alpha=-settings["lr"])
