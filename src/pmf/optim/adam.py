"""Adam with decoupled weight decay, plain and Nesterov's, with the arithmetic of optax."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmf.optim.rates import Rates, add_, add_quotients_
from pmf.optim.rule import Moments, Rule, Settings


class AdamW(Rule):
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; weights -= lr mhat / (sqrt(v / (1 - b2^k)) + eps).

    Here g is the gradient at update k = 1, 2, ... and mhat = m / (1 - b1^k).
    """

    moments = ("exp_avg", "exp_avg_sq")
    nesterov = False
    """Whether mhat is :func:`look_ahead`'s."""

    def rates(self, settings: Settings, lr: float, step: int) -> dict[str, float]:  # noqa: ARG002
        """Of mhat, and the root of the square's bias correction."""
        b1, b2 = settings["betas"]
        of_mean = look_ahead_rates(b1, step) if self.nesterov else {"mean_correction": 1 - b1**step}
        return {**of_mean, "root_correction": math.sqrt(1 - b2**step)}

    def update(
        self, settings: Settings, rates: Rates, weights: list[Tensor], gradients: list[Tensor], moments: Moments
    ) -> None:
        """See the class."""
        b1, b2 = settings["betas"]
        mean, square = moments["exp_avg"], moments["exp_avg_sq"]
        torch._foreach_lerp_(mean, gradients, 1 - b1)
        torch._foreach_mul_(square, b2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - b2)
        if self.nesterov:
            numerators = look_ahead(mean, gradients, rates)
        else:
            numerators = list(torch._foreach_div(mean, rates["mean_correction"]))
        denominators = list(torch._foreach_sqrt(square))
        torch._foreach_div_(denominators, rates["root_correction"])
        torch._foreach_add_(denominators, settings["eps"])
        add_quotients_(weights, numerators, denominators, rates["lr"], -1.0)


class NAdamW(AdamW):
    """The same with mhat = b1 m / (1 - b1^(k+1)) + (1 - b1) g / (1 - b1^k), as ``optax.adam(nesterov=True)``.

    This is not ``torch.optim.NAdam``, which has a schedule of the momentum.
    """

    nesterov = True


def look_ahead_rates(beta: float, k: int) -> dict[str, float]:
    """The numbers of :func:`look_ahead` at update k = 1, 2, ..."""
    return {"of_mean": beta / (1 - beta ** (k + 1)), "of_gradient": (1 - beta) / (1 - beta**k)}


def look_ahead(mean: list[Tensor], gradients: list[Tensor], rates: Rates) -> list[Tensor]:
    """Nesterov's estimate with bias correction: beta m / (1 - beta^(k+1)) + (1 - beta) g / (1 - beta^k)."""
    ahead = list(torch._foreach_mul(mean, rates["of_mean"]))
    add_(ahead, gradients, rates["of_gradient"])
    return ahead
