"""Which parameter is moved by what."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from pmf.distributed.shards import is_sharded
from pmf.distributed.world import ALONE, World
from pmf.optim.muon import Muon
from pmf.optim.options import OptimizerConfig
from pmf.optim.sharded_muon import ShardedMuon


def optimizer_kind(name: str, parameter: Tensor, embedding_names: Collection[str]) -> str:
    """``muon`` for the weight of a linear layer, ``nadamw`` for everything else.

    A linear weight is a matrix that is not a lookup table: biases, norms and gates are vectors, tokens and positions
    are (1, tokens, width), convolutions (1x1 too) are 4-D. That is what optax.contrib.muon sees in the official
    networks, where the label table is 3-D.

    Args:
        name: of the parameter, as in ``named_parameters``.
        embedding_names: the names of the lookup tables; see :func:`embedding_table_names`.
    """
    return "muon" if parameter.ndim == 2 and name not in embedding_names else "nadamw"


def embedding_table_names(network: nn.Module) -> set[str]:
    """Names of the weights of every ``nn.Embedding``."""
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    return {name for name, parameter in network.named_parameters() if id(parameter) in tables}


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """``[{"kind": ..., "params": [...]}, ...]`` for :class:`Muon`, in the order of ``named_parameters``.

    Frozen parameters are left out. ``config.name`` other than ``muon`` puts all others into that one kind.
    """
    tables = embedding_table_names(network)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            kind = optimizer_kind(name, parameter, tables) if config.name == "muon" else config.name
            groups.setdefault(kind, []).append(parameter)
    return [{"kind": kind, "params": parameters} for kind, parameters in groups.items()]


def create_optimizer(network: nn.Module, config: OptimizerConfig, world: World = ALONE) -> Muon:
    """The optimizer of ``config`` over a network that already is on its device, divided among ``world``."""
    sharded = any(is_sharded(parameter) for parameter in network.parameters())
    return (ShardedMuon if sharded else Muon)(
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
