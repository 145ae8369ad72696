"""Memory and messages of a step on N devices, counted.

``DDP``: everything whole on every device. ``owners``: what ``training.parallel: ddp`` does here, DDP whose optimizer
state and averages are divided (pmf/distributed/owners.py; the idea of ZeRO, stage 1). ``FSDP2``: parameters, gradients
and state in shards, blocks gathered as they are needed.

A collective over N ranks in a ring brings each rank (N - 1) / N of what is gathered or reduced; an all-reduce is a
reduce-scatter and an all-gather. What FSDP2 gathers is float32, as the weights are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pmf.costs.memory import StateBytes
from pmf.net.pixel_transformer import PixelTransformer

STRATEGIES = ("DDP", "owners", "FSDP2")


@dataclass(frozen=True, kw_only=True)
class NetworkBytes:
    """Bytes of the float32 parameters.

    Attributes:
        total: all of them.
        u_head: those that the guidance pass does not need.
        block: one transformer block, the unit that is gathered.
        outside: all that is in no block; gathered throughout a step.
        muon: the matrices that Muon moves.
    """

    total: int
    u_head: int
    block: int
    outside: int
    muon: int


def network_bytes(network: nn.Module, muon: int) -> NetworkBytes:
    """Count a network's parameters, which need no contents."""
    assert isinstance(network, PixelTransformer) and network.v_blocks is not None, "a network for training"
    blocks = [block for group in (network.shared_blocks, network.u_blocks, network.v_blocks) for block in group]
    total = _size(network)
    return NetworkBytes(
        total=total,
        u_head=_size(network.u_blocks) + _size(network.u_output),
        block=_size(blocks[0]),
        outside=total - sum(map(_size, blocks)),
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
        gradients = network.total if accumulation > 1 else network.block
        # One block at work, the next one on its way.
        return sharded + whole.perceptual + network.outside + 2 * network.block + gradients
    state = whole if strategy == "DDP" else owned
    return state.total + (state.gradients if accumulation > 1 and processes > 1 else 0)


def message_bytes(strategy: str, network: NetworkBytes, processes: int, accumulation: int) -> int:
    """Received by each device in one optimizer step.

    DDP reduces gradients: 2 P for parameters of P bytes. Owners also send their new weights: 3 P. FSDP2 gathers blocks
    for the guidance pass, the training pass and the backward pass of every micro-batch, scatters gradients once, and
    for Muon sends each matrix to its owner and back.
    """
    blocks = network.total - network.outside
    if strategy == "DDP":
        received = 2 * network.total
    elif strategy == "owners":
        received = 3 * network.total
    else:
        gathers = network.outside + 3 * blocks - network.u_head
        received = accumulation * gathers + network.total + 2 * network.muon // processes
    return received * (processes - 1) // processes


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
