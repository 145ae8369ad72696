"""Muon for matrices and Adam for the rest, in one optimizer, with the arithmetic of optax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pmf.strict import require_same_tensors

# What is remembered of each parameter; the names are those in checkpoints.
MOMENTS = {
    "muon": ("momentum",),
    "nadamw": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}
# Newton-Schulz takes matrices of one shape together, up to so many elements: on a GPU enough to fill it and little
# enough not to matter beside the weights; on a CPU a large product is fastest alone.
STACK_ELEMENTS = {"cpu": 2**15, "cuda": 2**26}


def orthogonalize(matrices: Tensor, steps: int = 5, eps: float = 1e-8, dtype: torch.dtype | None = None) -> Tensor:
    """Pull all singular values of each matrix towards 1 (Newton-Schulz, as optax.contrib.muon).

    With X = U S V^T, a X + (b X X^T + c (X X^T)^2) X = U (a S + b S^3 + c S^5) V^T: singular vectors stay, singular
    values pass through an odd polynomial whose coefficients trade exactness for speed: after five steps those that
    were above 0.002 lie in [0.68, 1.21]. It needs S <= 1 at the start, which the Frobenius norm guarantees. X X^T is
    formed on the shorter side. A zero matrix stays zero.

    Args:
        matrices: (..., rows, cols), float.
        steps: applications of the polynomial.
        eps: added to each Frobenius norm.
        dtype: of the products; None is that of ``matrices``. The norm is always taken in that of ``matrices``.

    Returns:
        The shape and dtype of ``matrices``.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT, steps, eps, dtype).mT
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + eps)
    x = x.to(dtype or matrices.dtype).reshape(-1, *matrices.shape[-2:])  # (N, rows, cols), rows <= cols
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.to(matrices.dtype).reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """optax.contrib.muon: Muon and Nesterov AdamW side by side, as in pMF utils/trainstate_util.py; or plain AdamW.

    Each parameter group has a ``kind``. With gradient g at update k = 1, 2, ... and every moment starting at 0:

    - ``muon`` (matrices (out, in), as in ``nn.Linear``): m = beta m + (1 - beta) g;
      x = orthogonalize(beta m / (1 - beta^(k+1)) + (1 - beta) g / (1 - beta^k)); weights -= lr sqrt(max(1, out/in)) x.
    - ``nadamw``: the two moments of Adam; mhat = b1 m / (1 - b1^(k+1)) + (1 - b1) g / (1 - b1^k);
      weights -= lr mhat / (sqrt(v / (1 - b2^k)) + eps), as ``optax.adam(nesterov=True)``.
    - ``adamw``: the same with mhat = m / (1 - b1^k).

    Before that, ``weights *= 1 - lr weight_decay``. These are not ``torch.optim.Muon`` (no bias correction, other
    normaliser) nor ``torch.optim.NAdam`` (a schedule of the momentum).

    A parameter whose gradient is None is skipped: neither it nor its moments change, while k goes on (optax would see
    zeros and let the moments decay). At lr = 0 weights stay and moments move.

    State is kept per parameter and allocated at once, so the parameters must already be on their device; k is
    ``group["step"]``.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        newton_schulz_dtype: torch.dtype | None = None,
    ) -> None:
        """Take groups ``{"kind": ..., "params": [...]}``; they may also override any of the settings.

        Args:
            groups: at most one of each kind.
            lr: learning rate of the next step, >= 0.
            momentum: Muon's beta, in [0, 1).
            betas: Adam's b1 and b2, in [0, 1).
            eps: in Adam's denominator and in Muon's normaliser, > 0.
            weight_decay: decoupled, >= 0.
            newton_schulz_dtype: of Muon's products; None is the parameter's. bfloat16 is meant for GPUs.

        Raises:
            ValueError: an unknown or repeated kind, a decay of 1, or a Muon parameter that is no matrix.
        """
        settings = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "newton_schulz_dtype": newton_schulz_dtype,
        }
        super().__init__(groups, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See :class:`torch.optim.Optimizer`; moments start at zero, k at 0."""
        kind = param_group.get("kind")
        if kind not in MOMENTS:
            raise ValueError(f"kind is {kind!r}; choose one of: {', '.join(MOMENTS)}")
        if kind in [group["kind"] for group in self.param_groups]:
            raise ValueError(f"there is a group of kind '{kind}' already; step counts are saved by kind")
        super().add_param_group({**param_group, "step": 0})
        group = self.param_groups[-1]
        if not all(0 <= decay < 1 for decay in (group["momentum"], *group["betas"])):
            raise ValueError(f"momentum {group['momentum']} and betas {group['betas']} must lie in [0, 1)")
        for parameter in group["params"]:
            if kind == "muon" and parameter.ndim != 2:
                raise ValueError(f"Muon moves matrices only, not a tensor of shape {tuple(parameter.shape)}")
            self.state[parameter] = {
                moment: torch.zeros_like(parameter, memory_format=torch.preserve_format) for moment in MOMENTS[kind]
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all groups; see the class. ``closure`` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] += 1
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if group["kind"] == "muon":
                self._step_muon(group, parameters)
            else:
                self._step_adam(group, parameters)
        return loss

    def named_state(self, network: nn.Module) -> dict[str, Tensor]:
        """Everything to continue from, flat, for a file.

        Returns:
            ``momentum/NAME``, ``exp_avg/NAME`` and ``exp_avg_sq/NAME`` for each trained parameter of ``network`` (the
            live tensors), and ``step/KIND`` for each group, int64 of shape ().
        """
        names = {parameter: name for name, parameter in network.named_parameters()}
        moments = {
            f"{moment}/{names[parameter]}": self.state[parameter][moment]
            for group in self.param_groups
            for parameter in group["params"]
            for moment in MOMENTS[group["kind"]]
        }
        return moments | {f"step/{group['kind']}": torch.tensor(group["step"]) for group in self.param_groups}

    def load_named_state(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`named_state`, bit for bit. Settings such as lr stay as they are.

        Raises:
            UserError: names or shapes differ; names the first of them.
        """
        own = self.named_state(network)
        require_same_tensors(
            own,
            tensors,
            intro="the optimizer's state is of another run",
            advice="check optimizer.name, model.name, data.image_size and data.num_classes",
        )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        for group in self.param_groups:
            group["step"] = int(tensors[f"step/{group['kind']}"])

    def _moments(self, parameters: list[Tensor], moment: str) -> list[Tensor]:
        return [self.state[parameter][moment] for parameter in parameters]

    def _step_muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta, k = group["momentum"], group["step"]
        gradients = [_gradient(parameter) for parameter in parameters]
        torch._foreach_lerp_(self._moments(parameters, "momentum"), gradients, 1 - beta)
        for batch in _stacks(parameters):
            inputs = torch._foreach_mul(self._moments(batch, "momentum"), beta / (1 - beta ** (k + 1)))
            gradients = [_gradient(parameter) for parameter in batch]
            torch._foreach_add_(inputs, gradients, alpha=(1 - beta) / (1 - beta**k))
            directions = orthogonalize(torch.stack(inputs), eps=group["eps"], dtype=group["newton_schulz_dtype"])
            rows, columns = batch[0].shape
            torch._foreach_add_(batch, directions.unbind(), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))

    def _step_adam(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        (b1, b2), k = group["betas"], group["step"]
        gradients = [_gradient(parameter) for parameter in parameters]
        mean, square = self._moments(parameters, "exp_avg"), self._moments(parameters, "exp_avg_sq")
        torch._foreach_lerp_(mean, gradients, 1 - b1)
        torch._foreach_mul_(square, b2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - b2)
        if group["kind"] == "nadamw":
            numerators = torch._foreach_mul(mean, b1 / (1 - b1 ** (k + 1)))
            torch._foreach_add_(numerators, gradients, alpha=(1 - b1) / (1 - b1**k))
        else:
            numerators = torch._foreach_div(mean, 1 - b1**k)
        denominators = torch._foreach_sqrt(square)
        torch._foreach_div_(denominators, math.sqrt(1 - b2**k))
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(parameters, numerators, denominators, -group["lr"])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _stacks(matrices: list[Tensor]) -> list[list[Tensor]]:
    """Matrices of one shape and dtype, in stacks of at most STACK_ELEMENTS (of one matrix where that is larger)."""
    by_shape: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
    for matrix in matrices:
        by_shape.setdefault((matrix.shape, matrix.dtype), []).append(matrix)
    stacks = []
    for same in by_shape.values():
        size = max(1, STACK_ELEMENTS.get(same[0].device.type, 1) // same[0].numel())
        stacks += [same[start : start + size] for start in range(0, len(same), size)]
    return stacks
