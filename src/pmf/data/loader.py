"""Micro-batches for one rank, decoded by worker processes, in an order that no number of processes can change."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pmf.data.options import DataConfig
from pmf.data.order import epoch_batches, epoch_flips, steps_per_epoch
from pmf.data.place import Place
from pmf.data.source import CorruptImage, Sample, Source, find_replacement
from pmf.errors import UserError


@dataclass
class Batch:
    """One micro-batch of one rank."""

    images: torch.Tensor
    """(b, C, H, W) as the codec of ``data.kind`` takes it: uint8 images, or moments of any float type."""
    labels: torch.Tensor
    """int64 (b,), in [0, num_classes)."""
    indices: torch.Tensor
    """int64 (b,): which images of the source these are."""
    step: int
    """The optimizer step that they belong to."""
    corrupt: list[CorruptImage] = field(default_factory=list)
    """Those of ``indices`` that could not be decoded; others stand in for them."""

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by torch's loader."""
        return Batch(
            self.images.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory(), self.step, self.corrupt
        )


class Loader:
    """Iterates over the micro-batches of a rank; each ``iter`` starts again at ``start_step``.

    Raises:
        UserError: while iterating, for an image or label that cannot be used; one line, without a worker's traceback.
    """

    def __init__(
        self, batches: DataLoader[Batch | UserError], *, max_corrupt: int, warn: Callable[[str], None]
    ) -> None:
        """Wrap torch's loader.

        Args:
            max_corrupt: different images that may be corrupt before iterating ends.
            warn: is told once about each of them.
        """
        self._batches = batches
        self._max_corrupt = max_corrupt
        self._warn = warn

    def __iter__(self) -> Iterator[Batch]:
        corrupt: set[CorruptImage] = set()
        for item in self._batches:
            if isinstance(item, UserError):
                raise item
            for image in item.corrupt:
                if image not in corrupt:
                    corrupt.add(image)
                    self._report(image, len(corrupt))
            yield item

    def _report(self, image: CorruptImage, number: int) -> None:
        if number > self._max_corrupt:
            raise UserError(
                f"{image}; it is corrupt image number {number} and data.max_corrupt_fraction allows "
                f"{self._max_corrupt}; download the files again or raise it"
            )
        self._warn(f"warning: {image}; another stands in for it (number {number} of at most {self._max_corrupt})")


def create_loader(
    source: Source,
    config: DataConfig,
    *,
    seed: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    start_step: int,
    num_steps: int,
    place: Place | None = None,
    warn: Callable[[str], None] = print,
) -> Loader:
    """Steps ``start_step`` ... ``start_step + num_steps - 1`` of a run, as rank ``rank`` sees them.

    Rank r owns positions [r B / world, (r + 1) B / world) of every global batch of B images and gets them in
    micro-batches, in order. Resuming needs no state but the step, and the place in the data if batches were of other
    sizes before.

    Args:
        source: the data set.
        config: its section: flips, workers, prefetching, pinning.
        seed: of the run; order and flips are functions of it.
        global_batch_size: images per optimizer step over all ranks.
        micro_batch_size: images per yielded batch.
        rank: this process, in [0, world_size).
        world_size: number of processes.
        start_step: first optimizer step, counted from the start of the run.
        num_steps: number of optimizer steps.
        place: in the data before the first of them; None: all steps before had this batch size.
        warn: is told about each image that is corrupt and replaced.

    Raises:
        UserError: for a data set smaller than one global batch.
        ValueError: unless ``micro_batch_size * world_size`` divides ``global_batch_size``.
    """
    if global_batch_size % (micro_batch_size * world_size):
        raise ValueError(f"{micro_batch_size=} times {world_size=} does not divide {global_batch_size=}")
    accumulation = global_batch_size // (micro_batch_size * world_size)
    schedule = _Schedule(
        seed=seed,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation,
        first_position=rank * accumulation * micro_batch_size,
        start_step=start_step,
        num_steps=num_steps,
        place=place or Place(num_samples=len(source)).after(start_step, global_batch_size),
        steps_per_epoch=steps_per_epoch(len(source), global_batch_size),
    )
    workers = config.num_workers
    batches = DataLoader(
        _MicroBatches(source, schedule, config.horizontal_flip),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=config.prefetch_factor if workers else None,
        pin_memory=config.pin_memory and torch.cuda.is_available(),
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context() if workers else None,
        # Without its own generator, torch would draw the workers' seeds from the global one.
        generator=torch.Generator(),
    )
    return Loader(
        batches,
        max_corrupt=int(config.max_corrupt_fraction * len(source)),
        warn=warn,
    )


def worker_context() -> multiprocessing.context.BaseContext:
    """How processes that share no state with this one start, for the loader's workers.

    Forking this process would copy locks held by the threads of CUDA, NCCL and trackers, and hang now and then.
    Spawning imports torch once per worker: 4 s each. A fork server imports it once, in a process without threads, and
    forks that one: 4 s for the first worker and 0.03 s for each further one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def start_worker(_worker: int) -> None:
    """What each worker of a loader does first. For ``worker_init_fn``."""
    # Signals may reach the whole process group; the parent decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    # Torch's workers watch their parent. Here that is the fork server, which lives as long as they do.
    threading.Thread(target=_exit_with_trainer, daemon=True).start()


def _exit_with_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


@dataclass(frozen=True)
class _Schedule:
    seed: int
    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    first_position: int
    start_step: int
    num_steps: int
    place: Place
    steps_per_epoch: int


@dataclass(frozen=True)
class _Position:
    """The place of a micro-batch in the run."""

    step: int
    epoch: int
    row: int
    """Number of the global batch among those that its epoch had left when this start began."""
    begin: int
    """First position in the global batch."""


class _MicroBatches(IterableDataset[Batch | UserError]):
    """Worker w of W makes micro-batches w, w + W, ...; torch's round robin over workers restores the order."""

    def __init__(self, source: Source, schedule: _Schedule, horizontal_flip: bool) -> None:
        self.source = source
        self.schedule = schedule
        self.horizontal_flip = horizontal_flip

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        total = self.schedule.num_steps * self.schedule.accumulation
        places = map(self._place, range(first, total, stride))
        try:
            for epoch, group in itertools.groupby(places, lambda place: place.epoch):
                yield from self._epoch(epoch, list(group))
        except UserError as error:
            # As a value: torch would wrap an exception from a worker in its traceback.
            yield error

    def _place(self, number: int) -> _Position:
        schedule = self.schedule
        steps, part = divmod(number, schedule.accumulation)
        epoch, row = schedule.place.epoch, steps
        beyond = steps - schedule.place.left(schedule.global_batch_size)
        if beyond >= 0:
            epochs, row = divmod(beyond, schedule.steps_per_epoch)
            epoch += 1 + epochs
        begin = schedule.first_position + part * schedule.micro_batch_size
        return _Position(schedule.start_step + steps, epoch, row, begin)

    def _epoch(self, epoch: int, places: list[_Position]) -> Iterator[Batch]:
        schedule, size = self.schedule, self.schedule.micro_batch_size
        num_samples = len(self.source)
        taken = schedule.place.taken if epoch == schedule.place.epoch else ()
        batches = epoch_batches(
            num_samples, schedule.global_batch_size, schedule.seed, epoch, self.source.block_starts, taken
        )
        indices = np.stack([batches[place.row, place.begin : place.begin + size] for place in places])
        del batches
        flips = epoch_flips(num_samples, schedule.seed, epoch) if self.horizontal_flip else None
        samples = self.source.samples(indices.reshape(-1))
        for place, row in zip(places, indices):
            chunk = list(itertools.islice(samples, size))
            corrupt = [sample for sample in chunk if isinstance(sample, CorruptImage)]
            good = [
                find_replacement(self.source, index, sample) if isinstance(sample, CorruptImage) else sample
                for sample, index in zip(chunk, row.tolist())
            ]
            yield _assemble(good, corrupt, row, None if flips is None else flips[row], place.step)


def _assemble(
    samples: list[Sample], corrupt: list[CorruptImage], indices: np.ndarray, flips: np.ndarray | None, step: int
) -> Batch:
    flipped = [False] * len(samples) if flips is None else flips.tolist()
    images = np.stack([sample.flipped() if flip else sample.image for sample, flip in zip(samples, flipped)])
    labels = torch.tensor([sample.label for sample in samples])
    return Batch(torch.from_numpy(images), labels, torch.from_numpy(indices.copy()), step, corrupt)
