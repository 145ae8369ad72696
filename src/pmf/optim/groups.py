"""Which parameter is moved by which rule, and the optimizer that does it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from pmf.distributed.shards import is_sharded
from pmf.distributed.world import ALONE, World
from pmf.optim.optimizer import RuleOptimizer
from pmf.optim.options import OptimizerConfig
from pmf.optim.rule import MatrixRule, create_rule
from pmf.optim.sharded_optimizer import ShardedRuleOptimizer


def is_linear_weight(name: str, parameter: Tensor, embedding_names: Collection[str]) -> bool:
    """Whether a parameter is the weight of a linear layer, which is what a rule for matrices moves.

    That is a matrix that is not a lookup table: biases, norms and gates are vectors, tokens and positions are
    (1, tokens, width), convolutions (1x1 too) are 4-D. optax.contrib.muon makes the same choice for the official
    networks, where the label table is 3-D.

    Args:
        name: of the parameter, as in ``named_parameters``.
        embedding_names: the names of the lookup tables; see :func:`embedding_table_names`.
    """
    return parameter.ndim == 2 and name not in embedding_names


def embedding_table_names(network: nn.Module) -> set[str]:
    """Names of the weights of every ``nn.Embedding``."""
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    return {name for name, parameter in network.named_parameters() if id(parameter) in tables}


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """``[{"kind": ..., "params": [...]}, ...]`` for :class:`RuleOptimizer`, in the order of ``named_parameters``.

    Frozen parameters are left out. The others are of the kind that ``config.name`` says; where that is a rule for
    matrices, those that are not weights of linear layers are of the kind of its :attr:`MatrixRule.rest`.
    """
    rule = create_rule(config.name)
    tables = embedding_table_names(network)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            kind = config.name
            if isinstance(rule, MatrixRule) and not is_linear_weight(name, parameter, tables):
                kind = rule.rest
            groups.setdefault(kind, []).append(parameter)
    return [{"kind": kind, "params": parameters} for kind, parameters in groups.items()]


def create_optimizer(network: nn.Module, config: OptimizerConfig, world: World = ALONE) -> RuleOptimizer:
    """The optimizer of ``config`` over a network that already is on its device, divided among ``world``."""
    sharded = any(is_sharded(parameter) for parameter in network.parameters())
    return (ShardedRuleOptimizer if sharded else RuleOptimizer)(
        parameter_groups(network, config),
        lr=config.lr,
        momentum=config.momentum,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        newton_schulz_dtype=_newton_schulz_dtype(network, config),
        world=world,
    )


def _newton_schulz_dtype(network: nn.Module, config: OptimizerConfig) -> torch.dtype | None:
    """bfloat16 where tensor cores make it pay and it is asked for or left open; None is the weights' own."""
    on_gpu = all(parameter.device.type == "cuda" for parameter in network.parameters())
    low = config.newton_schulz == "bfloat16" or (config.newton_schulz == "auto" and on_gpu)
    return torch.bfloat16 if low else None
