"""Muon for matrices and Adam for the rest, in one optimizer, with the arithmetic of optax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pmf.distributed.owners import Exchange, Share, collect, divide
from pmf.distributed.shards import local, placed_like
from pmf.distributed.world import ALONE, World
from pmf.optim.newton_schulz import orthogonalize
from pmf.tensors import require_same_tensors

# What is remembered of each parameter; the names are those in checkpoints.
MOMENTS = {
    "muon": ("momentum",),
    "nadamw": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}


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

    With several processes each parameter has an owner (see :mod:`pmf.distributed.owners`): only it keeps the moments
    and computes the new weights, which then go to the others while it goes on. The result is that of one process;
    where a gradient is missing, the owner's view counts.

    The parameters must already be on their device. k is ``group["step"]``; the moments in ``state`` are this rank's.
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
        world: World = ALONE,
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
            world: the processes among which state and work are divided; all must hold equal weights.

        Raises:
            ValueError: an unknown or repeated kind, a decay of 1, a Muon parameter that is no matrix, or a group of
                several dtypes.
        """
        settings = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "newton_schulz_dtype": newton_schulz_dtype,
        }
        self._world = world
        self._shares: list[Share] = []
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
        dtypes = {parameter.dtype for parameter in group["params"]}
        if len(dtypes) > 1:
            raise ValueError(f"one group holds {' and '.join(sorted(map(str, dtypes)))}; give each its own optimizer")
        for parameter in group["params"]:
            if kind == "muon" and parameter.ndim != 2:
                raise ValueError(f"Muon moves matrices only, not a tensor of shape {tuple(parameter.shape)}")
        self._adopt(kind, group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all groups; see the class. ``closure`` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] += 1
        self._move({group["kind"]: group for group in self.param_groups})
        return loss

    def named_state(self, network: nn.Module) -> dict[str, Tensor]:
        """Everything to continue from, flat, for a file; called by all ranks.

        Returns:
            ``momentum/NAME``, ``exp_avg/NAME`` and ``exp_avg_sq/NAME`` for each trained parameter of ``network`` (the
            live tensors if there is one process), and ``step/KIND`` for each group, int64 of shape (). Empty on all
            ranks but the main one.
        """
        like = self._named_parameters(network)
        owners = {parameter: share.owner for share in self._shares for parameter in share.parameters}
        moments = collect(
            self._world,
            own=self._own_state(like),
            like=like,
            owners={name: owners[parameter] for name, parameter in like.items()},
            everywhere=False,
        )
        return moments | self._step_counts() if self._world.is_main else {}

    def load_named_state(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`named_state` of any number of processes, bit for bit. Settings stay as they are.

        Raises:
            UserError: names or shapes differ; names the first of them.
        """
        like = self._named_parameters(network)
        require_same_tensors(
            like | self._step_counts(),
            tensors,
            intro="the optimizer's state is of another run",
            advice="check optimizer.name, model.name, data.image_size and data.num_classes",
        )
        for name, tensor in self._own_state(like).items():
            tensor.copy_(placed_like(tensor, tensors[name]))
        for group in self.param_groups:
            group["step"] = int(tensors[f"step/{group['kind']}"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :class:`torch.optim.Optimizer`; this rank's moments only, into the tensors that are there."""
        own = {parameter: dict(moments) for parameter, moments in self.state.items()}
        super().load_state_dict(state_dict)
        for parameter, moments in own.items():
            for moment, tensor in moments.items():
                tensor.copy_(self.state[parameter][moment])
            self.state[parameter] = moments

    def _adopt(self, kind: str, parameters: list[Tensor]) -> None:
        """Divide new parameters among the ranks, and make room for the moments of this rank's."""
        shares = divide(kind, parameters, self._world.size)
        self._shares += shares
        for share in shares:
            if share.owner == self._world.rank:
                self._allocate(share)

    def _move(self, groups: Mapping[str, dict[str, Any]]) -> None:
        """Update all parameters; ``groups`` by kind."""
        exchange = Exchange(self._world)
        for share in self._shares:
            if share.owner == self._world.rank:
                self._update(share, groups[share.kind])
            exchange.send(share.parameters, share.owner)
        exchange.finish()

    def _allocate(self, share: Share) -> None:
        """Zero moments, those of one share next to each other in memory: for Muon, stacked."""
        sizes = [parameter.numel() for parameter in share.parameters]
        for moment in MOMENTS[share.kind]:
            stacked = share.parameters[0].new_zeros(sum(sizes))
            for parameter, part in zip(share.parameters, stacked.split(sizes), strict=True):
                self.state[parameter][moment] = part.view_as(parameter)

    def _named_parameters(self, network: nn.Module) -> dict[str, Tensor]:
        """Each parameter once for each of its moments, by ``MOMENT/NAME``."""
        names = {parameter: name for name, parameter in network.named_parameters()}
        return {
            f"{moment}/{names[parameter]}": parameter
            for group in self.param_groups
            for parameter in group["params"]
            for moment in MOMENTS[group["kind"]]
        }

    def _own_state(self, named_parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self.state[parameter][name.partition("/")[0]]
            for name, parameter in named_parameters.items()
            if parameter in self.state
        }

    def _step_counts(self) -> dict[str, Tensor]:
        return {f"step/{group['kind']}": torch.tensor(group["step"]) for group in self.param_groups}

    def _update(self, share: Share, group: dict[str, Any]) -> None:
        parameters = trained(share)
        if not parameters:
            return
        if group["kind"] == "muon":
            inputs = torch.stack(self._advance_momenta(group, parameters))
            directions = orthogonalize(inputs, eps=group["eps"], dtype=group["newton_schulz_dtype"])
            self._step_muon(group, parameters, directions.unbind())
        else:
            self._step_adam(group, parameters)

    def _moments(self, parameters: list[Tensor], moment: str) -> list[Tensor]:
        return [local(self.state[parameter][moment]) for parameter in parameters]

    def _advance_momenta(self, group: dict[str, Any], matrices: list[Tensor]) -> list[Tensor]:
        """Average in the gradients; returns what is to be orthogonalised."""
        beta, k = group["momentum"], group["step"]
        gradients, momenta = _gradients(matrices), self._moments(matrices, "momentum")
        torch._foreach_lerp_(momenta, gradients, 1 - beta)
        inputs = torch._foreach_mul(momenta, beta / (1 - beta ** (k + 1)))
        torch._foreach_add_(inputs, gradients, alpha=(1 - beta) / (1 - beta**k))
        return list(inputs)

    def _step_muon(self, group: dict[str, Any], matrices: list[Tensor], directions: Iterable[Tensor]) -> None:
        rows, columns = matrices[0].shape
        weights = _decayed(group, matrices)
        torch._foreach_add_(weights, list(directions), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))

    def _step_adam(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        (b1, b2), k = group["betas"], group["step"]
        gradients = _gradients(parameters)
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
        torch._foreach_addcdiv_(_decayed(group, parameters), numerators, denominators, -group["lr"])


def trained(share: Share) -> list[Tensor]:
    """The parameters of a share that have a gradient."""
    return [parameter for parameter in share.parameters if parameter.grad is not None]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [local(parameter.grad) for parameter in parameters if parameter.grad is not None]


def _decayed(group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
    weights = [local(parameter) for parameter in parameters]
    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    return weights
