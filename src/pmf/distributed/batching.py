"""How a global batch is divided: micro-batch x accumulation x processes."""

from __future__ import annotations

import math

from pmf.errors import CrossFieldError


def divisors(total: int) -> list[int]:
    """All of them, ascending."""
    return [d for d in range(1, total + 1) if total % d == 0]


def nearest_divisors(total: int, wanted: int) -> str:
    """The divisors of ``total`` next below and next above ``wanted``, for error texts."""
    below = [d for d in divisors(total) if d <= wanted][-1:]
    above = [d for d in divisors(total) if d > wanted][:1]
    return ", ".join(str(d) for d in below + above)


def accumulation_steps(global_batch_size: int, micro_batch_size: int | None, world_size: int) -> int:
    """Micro-batches per rank and step, so that micro x accumulation x world = global.

    Args:
        micro_batch_size: None is the whole share of a rank.

    Raises:
        CrossFieldError: where no whole number does it.
    """
    if global_batch_size % world_size:
        raise CrossFieldError(
            "training.global_batch_size",
            f"is {global_batch_size}, not a multiple of the {world_size} processes; nearest multiples: "
            f"{_nearest_multiples(global_batch_size, world_size)}",
        )
    per_rank = global_batch_size // world_size
    micro = micro_batch_size or per_rank
    if per_rank % micro:
        raise CrossFieldError(
            "training.micro_batch_size",
            f"is {micro}, which does not divide the {per_rank} images per process (training.global_batch_size "
            f"{global_batch_size} on {world_size} processes); nearest divisors: "
            f"{nearest_divisors(per_rank, micro)}",
        )
    return per_rank // micro


def _nearest_multiples(value: int, factor: int) -> str:
    multiples = {math.floor(value / factor) * factor, math.ceil(value / factor) * factor} - {0}
    return ", ".join(str(m) for m in sorted(multiples))
