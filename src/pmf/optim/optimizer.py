"""One optimizer for all parameters of a network: each group of them is moved by a rule (pmf/optim/rule.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pmf.distributed.owners import Exchange, Share, collect, divide
from pmf.distributed.shards import local, placed_like
from pmf.distributed.world import ALONE, World
from pmf.optim.options import RULES
from pmf.optim.rates import Rates, add_
from pmf.optim.rule import CONSTANTS, MatrixRule, Numbers, Rule, create_rule
from pmf.tensors import require_same_tensors


class RuleOptimizer(torch.optim.Optimizer):
    """Drives rules: keeps their moments, applies weight decay, divides the work among processes, saves and restores.

    Each parameter group has a ``kind``, the name of its rule in ``RULES``; Muon and Nesterov AdamW side by side are
    optax.contrib.muon. Matrices of one shape are stacked, so that a rule directs many of them in one operation.

    A parameter whose gradient is None is skipped: neither it nor its moments change, while the count of updates goes
    on (optax would see zeros and let the moments decay). At lr = 0 weights stay and moments move.

    With several processes each parameter has an owner (see :mod:`pmf.distributed.owners`): only it keeps the moments
    and computes the new weights, which then go to the others while it goes on. The result is that of one process;
    where a gradient is missing, the owner's view counts.

    The parameters must already be on their device. The count of updates is ``group["step"]``; the moments in ``state``
    are this rank's.
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
            momentum: of rules with one decay (Muon's beta), in [0, 1).
            betas: of rules with two decays (Adam's b1 and b2), in [0, 1).
            eps: in Adam's denominator and in Muon's normaliser, > 0.
            weight_decay: decoupled, >= 0: before a rule moves weights, they are multiplied by 1 - lr weight_decay.
            newton_schulz_dtype: of Muon's products; None is the parameter's. bfloat16 is meant for GPUs.
            world: the processes among which state and work are divided; all must hold equal weights.

        Raises:
            ValueError: an unknown or repeated kind, a decay of 1, a parameter that is no matrix under a rule for
                matrices, or a group of several dtypes.
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
        self._rules: dict[str, Rule | MatrixRule] = {}
        self._shares: dict[str, list[Share]] = {}
        super().__init__(groups, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See :class:`torch.optim.Optimizer`; moments and the count of updates start at zero."""
        kind = param_group.get("kind")
        if kind not in RULES:
            raise ValueError(f"kind is {kind!r}; choose one of: {', '.join(RULES)}")
        if kind in self._rules:
            raise ValueError(f"there is a group of kind '{kind}' already; step counts are saved by kind")
        super().add_param_group({**param_group, "step": 0})
        group = self.param_groups[-1]
        if not all(0 <= decay < 1 for decay in (group["momentum"], *group["betas"])):
            raise ValueError(f"momentum {group['momentum']} and betas {group['betas']} must lie in [0, 1)")
        dtypes = {parameter.dtype for parameter in group["params"]}
        if len(dtypes) > 1:
            raise ValueError(f"one group holds {' and '.join(sorted(map(str, dtypes)))}; give each its own optimizer")
        rule = create_rule(kind)
        for parameter in group["params"]:
            if isinstance(rule, MatrixRule) and parameter.ndim != 2:
                raise ValueError(f"{kind} moves matrices only, not a tensor of shape {tuple(parameter.shape)}")
        self._rules[kind] = rule
        self._adopt(kind, group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all groups; see the class. ``closure`` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.move(self.next_rates())
        return loss

    def next_rates(self) -> dict[str, dict[str, float]]:
        """Count an update; its rates, by kind, for :meth:`move`."""
        rates = {}
        for group in self.param_groups:
            group["step"] += 1
            lr, rule = float(group["lr"]), self._rules[group["kind"]]
            own = rule.rates(_settings(group), lr, group["step"])
            rates[group["kind"]] = {"lr": lr, "weights_kept": 1 - lr * group["weight_decay"], **own}
        return rates

    @torch.no_grad()
    def move(self, rates: Mapping[str, Rates]) -> None:
        """One update of all groups that has been counted.

        Args:
            rates: those of :meth:`next_rates`, or tensors of their values on the parameters' device.
        """
        groups = {group["kind"]: group for group in self.param_groups}
        self._move({kind: Numbers(settings=_settings(groups[kind]), rates=own) for kind, own in rates.items()})

    def named_state(self, network: nn.Module) -> dict[str, Tensor]:
        """Everything to continue from, flat, for a file; called by all ranks.

        Returns:
            ``MOMENT/NAME`` for each moment of each trained parameter of ``network`` (the live tensors if there is one
            process), and ``step/KIND`` for each group, int64 of shape (). Empty on all ranks but the main one.
        """
        like = self._named_parameters(network)
        shares = [share for of_kind in self._shares.values() for share in of_kind]
        owners = {parameter: share.owner for share in shares for parameter in share.parameters}
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
        stacks = isinstance(self._rules[kind], MatrixRule)
        self._shares[kind] = divide(parameters, self._world.size, stacks=stacks)
        for share in self._shares[kind]:
            if share.owner == self._world.rank:
                self._allocate(kind, share)

    def _move(self, numbers: Mapping[str, Numbers]) -> None:
        """Update all parameters; ``numbers`` by kind."""
        exchange = Exchange(self._world)
        for kind, shares in self._shares.items():
            for share in shares:
                if share.owner == self._world.rank:
                    self._update(kind, numbers[kind], trained(share))
                exchange.send(share.parameters, share.owner)
        exchange.finish()

    def _allocate(self, kind: str, share: Share) -> None:
        """Zero moments, those of one share next to each other in memory: of a stack of matrices, stacked."""
        sizes = [parameter.numel() for parameter in share.parameters]
        for moment in self._rules[kind].moments:
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
            for moment in self._rules[group["kind"]].moments
        }

    def _own_state(self, named_parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self.state[parameter][name.partition("/")[0]]
            for name, parameter in named_parameters.items()
            if parameter in self.state
        }

    def _step_counts(self) -> dict[str, Tensor]:
        return {f"step/{group['kind']}": torch.tensor(group["step"]) for group in self.param_groups}

    def _update(self, kind: str, numbers: Numbers, parameters: list[Tensor]) -> None:
        """One update of parameters that have gradients, of one group; under a rule for matrices, of one shape."""
        if not parameters:
            return
        rule = self._rules[kind]
        if isinstance(rule, MatrixRule):
            directions = rule.direct(numbers.settings, torch.stack(self._advance(rule, numbers, parameters)))
            self._follow(rule, numbers, parameters, directions.unbind())
        else:
            weights = [local(parameter) for parameter in parameters]
            _decay(numbers, weights)
            moments = self._moments(rule, parameters)
            rule.update(numbers.settings, numbers.rates, weights, _gradients(parameters), moments)

    def _advance(self, rule: MatrixRule, numbers: Numbers, matrices: list[Tensor]) -> list[Tensor]:
        """Take in the gradients; returns what directions are made of, or this rank's parts of it."""
        return rule.advance(numbers.settings, numbers.rates, _gradients(matrices), self._moments(rule, matrices))

    def _follow(self, rule: MatrixRule, numbers: Numbers, matrices: list[Tensor], directions: Iterable[Tensor]) -> None:
        """Move matrices of one shape, or this rank's parts of them, against their directions."""
        weights = [local(matrix) for matrix in matrices]
        _decay(numbers, weights)
        add_(weights, list(directions), numbers.rates["lr"], -rule.factor(*matrices[0].shape))

    def _moments(self, rule: Rule | MatrixRule, parameters: list[Tensor]) -> dict[str, list[Tensor]]:
        return {name: [local(self.state[parameter][name]) for parameter in parameters] for name in rule.moments}


def trained(share: Share) -> list[Tensor]:
    """The parameters of a share that have a gradient."""
    return [parameter for parameter in share.parameters if parameter.grad is not None]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in CONSTANTS}


def _decay(numbers: Numbers, weights: list[Tensor]) -> None:
    """Decoupled weight decay, in place: ``weights *= 1 - lr weight_decay``."""
    if numbers.settings["weight_decay"]:
        torch._foreach_mul_(weights, numbers.rates["weights_kept"])


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
