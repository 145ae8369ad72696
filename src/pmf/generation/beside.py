"""What goes on beside the network: threads on the host, copies to and from a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pmf.distributed.world import World

THREADS_BESIDE_CPU = 4
"""Where the network itself computes on all cores; torch leaves it one, and of two cores more would take its own."""


@contextmanager
def threads_beside(device: torch.device, world: World) -> Iterator[ThreadPoolExecutor]:
    """Threads for noise and PNGs: as many as this process has cores that the network on ``device`` does not compute on.

    What is not begun when the context is left, by an error or by Ctrl-C, is not done.
    """
    threads = world.own_cores
    if device.type == "cpu":
        keep_freed_memory()
        threads = max(threads - torch.get_num_threads(), min(threads // 2, THREADS_BESIDE_CPU), 1)
    pool = ThreadPoolExecutor(threads, "images")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


def keep_freed_memory() -> None:
    """Let this process keep the memory of tensors that are freed, where its C library is GNU's.

    By default large tensors are given back to the system at once, and each new one is made of pages that the system
    clears first: a third of the time of a small network on a CPU.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """Tensors on their way to the host."""

    tensors: tuple[Tensor, ...]
    event: torch.cuda.Event | None
    """After the last of them; None: they are there."""

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


class Copies:
    """Copies for which neither the host nor a GPU's computing waits; each way has a CUDA stream of its own.

    A network on the CPU works on the host's tensors themselves.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.asynchronous = device.type == "cuda"
        if self.asynchronous:
            self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def to_device(self, tensor: Tensor) -> Tensor:
        """A host's tensor there, for what is computed from now on."""
        if not self.asynchronous:
            return tensor.to(self._device)
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        with torch.cuda.stream(self._up):
            there = pinned.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._up)
        there.record_stream(computing)
        return there

    def to_host(self, *tensors: Tensor) -> Arriving:
        """The device's tensors, as they are after what was asked of it so far."""
        if not self.asynchronous:
            return Arriving(tensors=tuple(tensor.cpu() for tensor in tensors), event=None)
        event = torch.cuda.Event(blocking=True)  # sleeping leaves the core to a thread
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            here = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors)
            for target, tensor in zip(here, tensors, strict=True):
                target.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._down)
            event.record()
        return Arriving(tensors=here, event=event)
