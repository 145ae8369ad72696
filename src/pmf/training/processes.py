"""The processes of a run: their group, devices and precision, as the training section asks for them."""

from __future__ import annotations

from typing import Any

from pmf.config.sections import TrainingConfig
from pmf.distributed.world import World, create_accelerator


def start_processes(training: TrainingConfig) -> Any:
    """Accelerate's object for the precision and devices that :func:`pmf.training.preflight.require_device` allows."""
    return create_accelerator(
        mixed_precision=training.mixed_precision,
        group_timeout=training.group_timeout,
        tf32=training.tf32,
        num_threads=training.num_threads,
        # With shards the cache would keep copies of all weights that FSDP drops. And with it, the gradients of
        # blocks that the guidance pass runs too, without graph, were wrong by half without a word
        # (tests/test_fsdp.py).
        cache_casts=training.parallel == "ddp",
    )


def world_of(accelerator: Any) -> World:
    """The processes that Accelerate has found, seen from this one."""
    return World(
        rank=accelerator.process_index,
        size=accelerator.num_processes,
        device=accelerator.device,
        barrier=accelerator.wait_for_everyone,
    )
