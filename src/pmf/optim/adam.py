"""Adam with decoupled weight decay, plain and Nesterov's, with the arithmetic of optax."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmf.optim.rule import Moments, Rule, Settings


class AdamW(Rule):
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; weights -= lr mhat / (sqrt(v / (1 - b2^k)) + eps).

    Here g is the gradient at update k = 1, 2, ... and mhat = m / (1 - b1^k).
    """

    moments = ("exp_avg", "exp_avg_sq")
    nesterov = False
    """Whether mhat is :func:`look_ahead`'s."""

    def update(self, settings: Settings, weights: list[Tensor], gradients: list[Tensor], moments: Moments) -> None:
        """See the class."""
        (b1, b2), k = settings["betas"], settings["step"]
        mean, square = moments["exp_avg"], moments["exp_avg_sq"]
        torch._foreach_lerp_(mean, gradients, 1 - b1)
        torch._foreach_mul_(square, b2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - b2)
        numerators = look_ahead(mean, gradients, b1, k) if self.nesterov else torch._foreach_div(mean, 1 - b1**k)
        denominators = torch._foreach_sqrt(square)
        torch._foreach_div_(denominators, math.sqrt(1 - b2**k))
        torch._foreach_add_(denominators, settings["eps"])
        torch._foreach_addcdiv_(weights, numerators, denominators, -settings["lr"])


class NAdamW(AdamW):
    """The same with mhat = b1 m / (1 - b1^(k+1)) + (1 - b1) g / (1 - b1^k), as ``optax.adam(nesterov=True)``.

    This is not ``torch.optim.NAdam``, which has a schedule of the momentum.
    """

    nesterov = True


def look_ahead(mean: list[Tensor], gradients: list[Tensor], beta: float, k: int) -> list[Tensor]:
    """Nesterov's estimate with bias correction: beta m / (1 - beta^(k+1)) + (1 - beta) g / (1 - beta^k)."""
    ahead = torch._foreach_mul(mean, beta / (1 - beta ** (k + 1)))
    torch._foreach_add_(ahead, gradients, alpha=(1 - beta) / (1 - beta**k))
    return list(ahead)
