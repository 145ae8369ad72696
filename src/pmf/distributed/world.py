"""The processes of a run, what they tell each other, and how Accelerate starts them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from pmf.errors import AgreedError, UserError
from pmf.files import storage_in_one_line

T = TypeVar("T")


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
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    @property
    def own_cores(self) -> int:
        """CPU cores of this process: those that it may use, shared with the other processes of this machine."""
        return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all processes, in order of rank; called by all of them."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def raise_together(self, problem: str | None) -> None:
        """End all ranks if something is wrong on any of them, so that none is left waiting; called by all ranks.

        Raises:
            AgreedError: the problem of the lowest rank that has one.
        """
        found = [text for text in self.gather(problem) if text]
        if found:
            raise AgreedError(found[0])

    def main_first(self, build: Callable[[], T]) -> T:
        """The result of ``build`` on this rank; the main one goes first, because it may have to write files.

        Raises:
            AgreedError: ``build`` raised a ``UserError``, on any rank.
        """
        for turn in (True, False):
            problem = None
            if self.is_main == turn:
                result, problem = _attempt(build)
            self.raise_together(problem)
        return cast(T, result)

    def together(self, build: Callable[[], T]) -> T:
        """The result of ``build``, which every rank calls.

        Raises:
            AgreedError: ``build`` raised a ``UserError``, on any rank.
        """
        result, problem = _attempt(build)
        self.raise_together(problem)
        return cast(T, result)

    def ask_main(self, find: Callable[[], T]) -> T:
        """What ``find`` returns on the main rank, for all ranks; it is called there alone. A plain value.

        Raises:
            AgreedError: ``find`` raised a ``UserError``.
        """
        answer: list[Any] = [None, None]
        if self.is_main:
            answer = [*_attempt(find)]
        if self.size > 1:
            torch.distributed.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise AgreedError(answer[1])
        return answer[0]

    def add_up(self, tensor: Tensor) -> None:
        """Overwrite ``tensor`` (on ``device``, of one shape everywhere) with its sum over all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def broadcast(self, tensor: Tensor, source: int) -> torch.distributed.Work:
        """Start overwriting ``tensor`` with that of rank ``source``; for more than one process. Wait on the result."""
        work = torch.distributed.broadcast(tensor, source, async_op=True)
        assert work is not None, "asked for by async_op"
        return work

    def maximum(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with the largest of each element over all processes, and return it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor


def _attempt(build: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result of ``build``, or the line that says why there is none: a user's mistake, or what storage refuses."""
    try:
        with storage_in_one_line():
            return build(), None
    except UserError as error:
        return None, str(error)


ALONE = World(rank=0, size=1, device=torch.device("cpu"), barrier=lambda: None)
"""One process, as in a notebook; its device is only a default."""


def join_world(*, on_host: bool = False, timeout: timedelta | None = None) -> World:
    """Find the processes that ``accelerate launch`` or ``torchrun`` started; alone, a world of one.

    Args:
        on_host: meet on the CPU also where there are GPUs, and leave their memory alone.
        timeout: how long a process waits for the others; None: as long as torch lets it.
    """
    on_gpu = torch.cuda.is_available()
    patience = {} if timeout is None else {"timeout": timeout}
    state: Any = PartialState(cpu=on_host or not on_gpu, **patience)
    if not on_gpu:
        share_cores(None, state.num_processes)
    return World(
        rank=state.process_index, size=state.num_processes, device=state.device, barrier=state.wait_for_everyone
    )


def create_accelerator(
    *, mixed_precision: str, group_timeout: float, tf32: bool, num_threads: int | None, cache_casts: bool
) -> Accelerator:
    """Process group, device and precision, as the training section has them.

    Args:
        group_timeout: seconds that a process waits for the others.
        num_threads: see :func:`share_cores`.
        cache_casts: keep autocast's copies of weights from one use to the next.
    """
    on_gpu = torch.cuda.is_available()
    set_float32_precision(tf32=tf32)
    # The buffers are constant tables.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=group_timeout))
    autocast = AutocastKwargs(cache_enabled=cache_casts)
    handlers = [ddp, group, autocast]
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=not on_gpu, kwargs_handlers=handlers)
    if mixed_precision == "fp16" and not on_gpu:
        # On a CPU Accelerate would train in float32 without a word, though autocast and scaler work there.
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    if not on_gpu:
        share_cores(num_threads, accelerator.num_processes)
    elif num_threads:
        torch.set_num_threads(num_threads)
    return accelerator


def usable_cores() -> int:
    """CPU cores that this process may use; systems without affinity, as macOS, say only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(num_threads: int | None, world_size: int) -> None:
    """Set the threads with which torch computes on the CPU, where all processes compute there.

    Threads meet after every operation, so one whose core is busy with something else holds up all: more threads than
    free cores are several times slower than one. Hence processes never have more threads than cores together, and by
    default they leave a core to whatever else runs.

    Args:
        num_threads: those asked for; None takes OMP_NUM_THREADS, or all cores but one.
    """
    cores, processes = usable_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if num_threads is None and "OMP_NUM_THREADS" in os.environ:
        num_threads = torch.get_num_threads()
    most = (cores - 1 if num_threads is None else cores) // processes
    torch.set_num_threads(max(1, min(num_threads or most, most)))


def set_float32_precision(*, tf32: bool) -> None:
    """How the float32 matrix products and convolutions that remain under autocast run on CUDA."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def float32_precision(*, tf32: bool) -> Iterator[None]:
    """A context in which it is as :func:`set_float32_precision` has it; afterwards it is as before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_float32_precision(tf32=tf32)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def meeting_point(timeout: timedelta) -> torch.distributed.Store:
    """A connection of its own to the store through which the processes met, for what must not need a collective.

    Raises:
        RuntimeError: it does not answer.
        KeyError: there is none: this process is alone.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store when it starts again
    store = torch.distributed.TCPStore(address, port, is_master=False, timeout=timeout)
    return torch.distributed.PrefixStore(f"pmf, attempt {attempt}", store)


def is_first_to_find(problem: str) -> bool:
    """Whether this process is the first to report a problem; processes count in the store through which they met."""
    key = hashlib.sha256(problem.encode()).hexdigest()
    try:
        return meeting_point(timedelta(seconds=5)).add(f"reported {key}", 1) == 1
    except (RuntimeError, KeyError):  # gone with the process that held it: reported twice is better than not at all
        return True
