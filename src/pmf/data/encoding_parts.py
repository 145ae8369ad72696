"""The images that are encoded, batch by batch, decoded from their files by worker processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pmf.data.loader import start_worker, worker_context
from pmf.data.source import CorruptImage, Sample, Source
from pmf.errors import UserError


@dataclass
class Part:
    """One batch of a shard.

    Attributes:
        images: uint8 (b, 3, size, size), those that could be decoded.
        labels: int64 (b,).
        corrupt: the others: where they are, and what is wrong with them.
        error: what ended the reading.
    """

    shard: int
    images: Tensor
    labels: Tensor
    corrupt: list[str]
    error: UserError | None = None


class _Parts(IterableDataset[Part]):
    """Worker w of W reads batches w, w + W, ...; torch's round robin over workers restores the order."""

    def __init__(self, source: Source, batches: list[tuple[int, np.ndarray]]) -> None:
        self.source = source
        self.batches = batches

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        batches = self.batches[first::stride]
        # All at once, so that a source reads a block once for all batches that share it.
        coming = self.source.samples(np.concatenate([np.empty(0, np.int64), *(indices for _, indices in batches)]))
        for number, indices in batches:
            try:
                samples = list(itertools.islice(coming, len(indices)))
            except UserError as error:
                # As a value: torch would wrap an exception from a worker in its traceback.
                yield Part(number, torch.empty(0), torch.empty(0), [], error)
                return
            good = [sample for sample in samples if isinstance(sample, Sample)]
            corrupt = [str(sample) for sample in samples if isinstance(sample, CorruptImage)]
            images = torch.from_numpy(np.stack([sample.image for sample in good])) if good else torch.empty(0)
            yield Part(number, images, torch.tensor([sample.label for sample in good], dtype=torch.int64), corrupt)


def read_parts(source: Source, batches: list[tuple[int, np.ndarray]], num_workers: int) -> Iterator[Part]:
    """Decode these batches, in this order.

    Args:
        batches: number of the shard and indices of the images, int64.
        num_workers: processes that decode; 0: this one.
    """
    workers = min(num_workers, len(batches))
    return iter(
        DataLoader(
            _Parts(source, batches),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=start_worker,
            multiprocessing_context=worker_context() if workers else None,
            generator=torch.Generator(),  # its own: torch would draw the workers' seeds from the global one
        )
    )
