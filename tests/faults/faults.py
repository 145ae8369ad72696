"""What goes wrong in a rank, and when: installed in its process before the command starts, around what it calls.

The library knows nothing of this. A fault stands before a call and sends this process a real signal, or changes what
the call returns.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import pkgutil
import resource
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]

STEP = "pmf.training.step.TrainingStep.__call__"
SAVE = "pmf.training.trainer.save_checkpoint"
# What changes the disk while a checkpoint is saved.
WRITES = ("os.mkdir", "pmf.tensors.save_file", "os.fsync", "os.rename", "os.replace", "os.unlink", "os.rmdir")


def wrap(target: str, wrapper: Wrapper) -> None:
    """Replace a function or method, given by its dotted name."""
    owner_name, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(wrapper(original)))


@dataclass(frozen=True)
class SignalAt:
    """Sends signals to this process before call ``number`` (from 1) of ``target``."""

    target: str
    number: int
    signals: tuple[int, ...] = (signal.SIGKILL,)

    def __call__(self) -> None:
        calls = 0

        def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == self.number:
                    for number in self.signals:
                        os.kill(os.getpid(), number)
                return original(*args, **kwargs)

            return wrapped

        wrap(self.target, wrapper)


@dataclass(frozen=True)
class KillInSave:
    """Kills this process before call ``point`` (from 1) of those in ``WRITES`` within a save.

    The first is the ``os.mkdir`` of the new folder: what a save removes before, an earlier kill has left.

    Attributes:
        record: a file that gets the name of each such call.
    """

    point: int | None = None
    record: Path | None = None

    def __call__(self) -> None:
        saving, begun, calls = False, False, 0

        def count(target: str) -> Wrapper:
            def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
                def wrapped(*args: Any, **kwargs: Any) -> Any:
                    nonlocal begun, calls
                    begun |= saving and target == "os.mkdir"
                    if saving and begun:
                        calls += 1
                        if calls == self.point:
                            os.kill(os.getpid(), signal.SIGKILL)
                        if self.record:
                            with self.record.open("a") as file:
                                file.write(f"{target}\n")
                    return original(*args, **kwargs)

                return wrapped

            return wrapper

        def save(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal saving
                saving = True
                result = original(*args, **kwargs)
                saving = False
                return result

            return wrapped

        wrap(SAVE, save)
        for target in WRITES:
            wrap(target, count(target))


@dataclass(frozen=True)
class NaNImages:
    """The images of these micro-batches of a rank (counted from 1) are NaN."""

    first: int
    last: int

    def __call__(self) -> None:
        calls = 0

        def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(images: Any) -> Any:
                nonlocal calls
                calls += 1
                return original(images) * (float("nan") if self.first <= calls <= self.last else 1.0)

            return wrapped

        wrap("pmf.data.codec.to_unit_range", wrapper)


@dataclass(frozen=True)
class FullDisk:
    """No file can be larger than this many bytes."""

    limit: int

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start; then a write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))


@dataclass(frozen=True)
class Umask:
    """Which rights this process takes from what it creates."""

    mask: int

    def __call__(self) -> None:
        os.umask(self.mask)


@dataclass(frozen=True)
class NoRights:
    """From the moment that the run folder is locked, this process is nobody's, if it was root's."""

    def __call__(self) -> None:
        def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if os.getuid() == 0:
                    os.seteuid(65534)
                return original(*args, **kwargs)

            return wrapped

        wrap("pmf.training.run_folder.RunFolder.lock", wrapper)


@dataclass(frozen=True)
class SignalWorkers:
    """Sends a signal to the loader's workers before a step, and writes their process ids to a file."""

    step: int
    signal: int
    record: Path

    def __call__(self) -> None:
        calls = 0

        def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == self.step:
                    workers = [child.pid or 0 for child in multiprocessing.active_children()]
                    self.record.write_text(" ".join(map(str, workers)))
                    for worker in workers:
                        os.kill(worker, self.signal)
                return original(*args, **kwargs)

            return wrapped

        wrap(STEP, wrapper)


@dataclass(frozen=True)
class InfiniteAverage:
    """What this rank owns of an average is infinite after every odd step, and whole again before the next."""

    name: str

    def __call__(self) -> None:
        whole: list[Any] = []
        steps = itertools.count(1)

        def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(averages: Any, network: Any, rates: Any) -> None:
                own = list(averages._tensors[self.name].values())
                for tensor, before in zip(own, whole):
                    tensor.copy_(before)
                whole.clear()
                original(averages, network, rates)
                if next(steps) % 2:
                    whole.extend(tensor.clone() for tensor in own)
                    for tensor in own:
                        tensor.fill_(float("inf"))

            return wrapped

        wrap("pmf.optim.ema.WeightAverages.move", wrapper)


@dataclass(frozen=True)
class NoLocks:
    """The file system answers every request for a lock with this error."""

    number: int

    def __call__(self) -> None:
        wrap("fcntl.lockf", lambda original: partial(_refuse, self.number))


@dataclass(frozen=True)
class NoFolderFlush:
    """The file system answers every flush of a folder with this error."""

    number: int

    def __call__(self) -> None:
        def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(descriptor: int) -> None:
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    _refuse(self.number)
                original(descriptor)

            return wrapped

        wrap("os.fsync", wrapper)


@dataclass(frozen=True)
class All:
    """Several faults at once."""

    faults: tuple[Callable[[], None], ...]

    def __call__(self) -> None:
        for fault in self.faults:
            fault()


def _refuse(number: int, *args: Any) -> None:
    raise OSError(number, os.strerror(number))
