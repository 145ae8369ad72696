"""Ranks, how a command ends, and every source of randomness: generators that are functions of named integers."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from pmf.errors import UserError


class Stream(enum.IntEnum):
    """What a random stream is for. Two purposes never share numbers, whatever the seed."""

    WEIGHTS = 1
    ORDER = 2
    FLIP = 3
    DRAWS = 4
    IMAGE_NOISE = 5
    LABELS = 6
    SYNTHETIC = 7


def numpy_generator(stream: Stream, *key: int) -> np.random.Generator:
    """A generator that is a function of the stream and of ``key`` (non-negative integers: seed, step, sample...)."""
    return np.random.default_rng((int(stream), *key))


def torch_generator(stream: Stream, *key: int) -> torch.Generator:
    """The same on the CPU for torch; see :func:`numpy_generator`."""
    state = np.random.SeedSequence((int(stream), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of this run, seen from one of them.

    Attributes:
        device: where this process computes.
        barrier: waits for all processes.
    """

    rank: int
    size: int
    device: torch.device
    barrier: Callable[[], None]

    @property
    def is_main(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0


def join_world() -> World:
    """Find the processes that ``accelerate launch`` or ``torchrun`` started; alone, a world of one."""
    state: Any = PartialState(cpu=not torch.cuda.is_available())
    return World(
        rank=state.process_index, size=state.num_processes, device=state.device, barrier=state.wait_for_everyone
    )


def is_main_rank() -> bool:
    """Whether this process is the one that talks, by its launcher's environment (also before any process group)."""
    return int(os.environ.get("RANK", "0")) == 0


def run_command(main: Callable[[], None]) -> None:
    """Run a command; a user's mistake becomes one line on stderr and exit status 2.

    Before the process group exists every rank makes the same mistake, so only the main one reports it.
    """
    try:
        main()
    except UserError as error:
        if is_main_rank() or torch.distributed.is_initialized():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
