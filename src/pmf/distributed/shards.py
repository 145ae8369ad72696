"""Weights in shards (FSDP2, HSDP): how a network is sharded, and the few things that the house does with shards.

A sharded weight is a DTensor, cut along its first dimension over the ranks of a shard group, and so are its gradient
and all that is remembered of it (moments, averages). What works element by element works on :func:`local` parts. What
leaves for a file or for sampling is :func:`complete`, and comes back by :func:`placed_like`: nothing outside a run
knows how it was sharded. These functions pass plain tensors through, as DDP and a single process have them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from pmf.distributed.batching import nearest_divisors
from pmf.distributed.world import World
from pmf.errors import UserError

if TYPE_CHECKING:  # half as much to import as torch itself, and for runs with shards alone
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def shard_weights(module: nn.Module, parallel: str, shard_size: int | None, world: World) -> None:
    """Shard a module in place, as ``training.parallel`` and ``training.shard_size`` say.

    Each item of each ``nn.ModuleList`` is gathered by itself.

    The weights of an item are gathered before each of its calls and dropped after it, those of the rest of the module
    once per forward. All ranks must hold equal weights; nothing is broadcast.

    Raises:
        UserError: ``training.shard_size`` does not divide the number of processes.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = _create_mesh(parallel, shard_size, world)
    for item in sharded_items(module):
        fully_shard(item, mesh=mesh)
    fully_shard(module, mesh=mesh)


def sharded_items(module: nn.Module) -> list[nn.Module]:
    """The parts whose weights are gathered by themselves: the items of each ``nn.ModuleList``."""
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    return [item for items in lists for item in items]


def _create_mesh(parallel: str, shard_size: int | None, world: World) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    device = world.device.type
    if parallel == "fsdp":
        return init_device_mesh(device, (world.size,), mesh_dim_names=("shard",))
    size = shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if world.size % size:
        raise UserError(
            f"training.shard_size is {size}{'' if shard_size else ' (the processes of this machine)'}, which "
            f"does not divide the {world.size} processes; nearest divisors: {nearest_divisors(world.size, size)}"
        )
    return init_device_mesh(device, (world.size // size, size), mesh_dim_names=("replicate", "shard"))


def average_gradients(module: nn.Module, *, now: bool) -> None:
    """Whether the next backward pass averages gradients over ranks, or adds them up on each; for sharded modules."""
    if _is_fsdp(module):
        module.set_requires_gradient_sync(now)


def _is_fsdp(module: nn.Module) -> TypeGuard[FSDPModule]:
    known = sys.modules.get("torch.distributed.fsdp")
    return known is not None and isinstance(module, known.FSDPModule)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor; there is none before somebody imports the class."""
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part that this rank holds: the live tensor, to be read and written. Under ``no_grad``."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The complete tensor; called by all ranks."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def placed_like(pattern: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of a complete tensor that every rank has, laid out as ``pattern`` is."""
    if not is_sharded(pattern):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def complete(tensors: Mapping[str, Tensor], *, everywhere: bool) -> dict[str, Tensor]:
    """Copies on the CPU of tensors that are sharded, one gathered after the other; plain ones as they are.

    Called by all ranks.

    Args:
        everywhere: for all ranks; otherwise the copies are for the main one, and the others get none.
    """
    found = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if not is_sharded(tensor):
            found[name] = gathered
        elif everywhere or torch.distributed.get_rank() == 0:
            found[name] = gathered.cpu()
    return found
