"""Memory and messages of a step on N devices, counted.

``DDP``: everything whole on every device. ``owners``: what ``training.parallel: ddp`` does here, DDP whose optimizer
state and averages are divided (pmf/distributed/owners.py; the idea of ZeRO, stage 1). ``FSDP2``: parameters, gradients
and state in shards, gathered as they are needed.

A collective over N ranks in a ring brings each rank (N - 1) / N of what is gathered or reduced; an all-reduce is a
reduce-scatter and an all-gather. What FSDP2 gathers is float32, as the weights are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pmf.costs.memory import MemoryEstimator, StateBytes
from pmf.distributed.shards import sharded_items

STRATEGIES = ("DDP", "owners", "FSDP2")


@dataclass(frozen=True, kw_only=True)
class NetworkBytes:
    """Bytes of the float32 parameters.

    Attributes:
        total: all of them.
        item: the largest of the parts that FSDP2 gathers by themselves.
        outside: all that is in no such part; gathered throughout a step.
        gathered: what a micro-batch gathers, each part before each of its forward passes and before its backward pass.
        muon: the matrices that Muon moves.
    """

    total: int
    item: int
    outside: int
    gathered: int
    muon: int


def network_bytes(estimator: MemoryEstimator, muon: int) -> NetworkBytes:
    """Count a network's parameters, and simulate a micro-batch of four images to see when each part is called."""
    network = estimator.network
    items = sharded_items(network)
    total = _size(network)
    outside = total - sum(map(_size, items))
    calls: list[int] = []
    hooks = [item.register_forward_pre_hook(lambda module, _: calls.append(_size(module))) for item in items]
    estimator.simulate(4)
    for hook in hooks:
        hook.remove()
    return NetworkBytes(
        total=total,
        item=max(map(_size, items), default=0),
        outside=outside,
        gathered=outside + sum(calls) + sum(map(_size, items)),
        muon=muon,
    )


def device_bytes(
    strategy: str, whole: StateBytes, owned: StateBytes, network: NetworkBytes, processes: int, accumulation: int
) -> int:
    """What each device holds besides activations, at the worst time of a step.

    Args:
        whole: state of one process alone.
        owned: state of the process that owns most, of so many.
        accumulation: micro-batches per optimizer step. With several, DDP has a second copy of the gradients in its
            buckets, and FSDP2 adds up whole gradients before it scatters them.
    """
    if strategy == "FSDP2":
        sharded = (whole.total - whole.perceptual) // processes
        gradients = network.total if accumulation > 1 else network.item
        # One part at work, the next one on its way.
        return sharded + whole.perceptual + network.outside + 2 * network.item + gradients
    state = whole if strategy == "DDP" else owned
    return state.total + (state.gradients if accumulation > 1 and processes > 1 else 0)


def message_bytes(strategy: str, network: NetworkBytes, processes: int, accumulation: int) -> int:
    """Received by each device in one optimizer step.

    DDP reduces gradients: 2 P for parameters of P bytes. Owners also send their new weights: 3 P. FSDP2 gathers what
    each forward and backward pass of every micro-batch needs, scatters gradients once, and for Muon sends each matrix
    to its owner and back.
    """
    if strategy == "DDP":
        received = 2 * network.total
    elif strategy == "owners":
        received = 3 * network.total
    else:
        received = accumulation * network.gathered + network.total + 2 * network.muon // processes
    return received * (processes - 1) // processes


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
