"""Memory and messages of a step on N devices, counted: plain DDP, DDP with owners (what pmf does), and FSDP2.

P: bytes of the float32 parameters. A collective over N ranks in a ring brings each rank (N - 1) / N of what it gathers
or reduces; an all-reduce is a reduce and a gather.
"""

from __future__ import annotations

from dataclasses import dataclass

from pmf.memory.estimate import StateBytes

STRATEGIES = ("DDP", "DDP + owners", "FSDP2")


@dataclass(frozen=True, kw_only=True)
class NetworkBytes:
    """What FSDP2 gathers; float32 bytes of parameters.

    Attributes:
        total: all of them.
        guidance: those of the guidance pass: all but the u head.
        block: one transformer block, the unit that is gathered.
        outside: all that is in no block; gathered throughout the step.
        muon: the matrices that Muon moves.
    """

    total: int
    guidance: int
    block: int
    outside: int
    muon: int


def state_bytes(strategy: str, whole: StateBytes, owned: StateBytes, network: NetworkBytes, processes: int) -> int:
    """Between two steps, on each device, and what is gathered during a step.

    Args:
        whole: of one process.
        owned: of the process that owns most, of so many processes.
    """
    if strategy == "DDP":
        return whole.total
    if strategy == "DDP + owners":
        return owned.total
    sharded = (whole.total - whole.perceptual) // processes
    # A block at work and the next one arriving, in bfloat16; gradients of a block in float32 on their way out.
    gathered = 2 * network.block // 2 + network.outside // 2 + network.block
    return sharded + whole.perceptual + gathered


def message_bytes(strategy: str, network: NetworkBytes, processes: int, accumulation: int) -> int:
    """Received by each device in one optimizer step.

    DDP reduces the gradients once a step: 2 P. Owners also send their new weights: 3 P. FSDP2 gathers bfloat16 weights
    for the guidance pass, the training pass and the backward pass, and scatters float32 gradients, in every
    micro-batch; for Muon each matrix goes to its owner and back once a step.
    """
    total = network.total
    if strategy == "DDP":
        received = 2 * total
    elif strategy == "DDP + owners":
        received = 3 * total
    else:
        gathers = (network.guidance + 2 * total) // 2
        received = accumulation * (gathers + total) + 2 * network.muon // processes
    return received * (processes - 1) // processes
