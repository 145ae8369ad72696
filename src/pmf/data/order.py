"""The order of images: a pure function of data set, seed, epoch and global batch size, and of nothing else.

A run whose batch size changes on the way goes on where it is in its epoch (:mod:`pmf.data.place`), with the images that
the epoch has not had yet, each of them once.

Where single reads are cheap, an epoch is a plain permutation. A row of a Parquet file costs a whole row group (about
100 images, 11 MB in ImageNet), so there the order is random in two stages: row groups are permuted, and rows are
shuffled within pools of ``POOL_BLOCKS`` consecutive row groups. The resulting sequence is cut into
lanes, and every batch takes the next few rows of each lane. Ranks own slices of the batch, hence lanes, hence mostly
different row groups; yet a batch of 1024 mixes rows from up to 256 row groups.

Sets below ``PLAIN_BELOW`` images are permuted plainly in either case: they fit in memory, and the better mixture is
free.
"""

from __future__ import annotations

import math

import numpy as np

from pmf.errors import UserError
from pmf.randomness import Stream, numpy_generator

POOL_BLOCKS = 4
MAX_LANES = 64
PLAIN_BELOW = 20_000


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Full batches in a pass over the data; the images left over, other ones in every epoch, are skipped.

    Raises:
        UserError: for a data set smaller than one batch.
    """
    if num_samples < global_batch_size:
        raise UserError(
            f"training.global_batch_size is {global_batch_size}, but the data set has only {num_samples} images; "
            f"set it to {num_samples} or less"
        )
    return num_samples // global_batch_size


def epoch_batches(
    num_samples: int,
    global_batch_size: int,
    seed: int,
    epoch: int,
    block_starts: np.ndarray | None = None,
    taken: tuple[tuple[int, int], ...] = (),
) -> np.ndarray:
    """All batches of an epoch, or those that are left.

    Args:
        num_samples: images in the data set.
        global_batch_size: images per optimizer step over all ranks.
        seed: of the run.
        epoch: 0, 1, ...
        block_starts: first index of each block that is read as a whole, int64 (blocks,), ascending from 0.
        taken: what the epoch has had already; see :class:`pmf.data.place.Place`.

    Returns:
        int64 (steps, global_batch_size): distinct indices in [0, num_samples), and none of those taken.

    Raises:
        UserError: for a data set smaller than one batch.
    """
    steps_per_epoch(num_samples, global_batch_size)
    generator = numpy_generator(Stream.ORDER, seed, epoch)
    if block_starts is None or num_samples < PLAIN_BELOW:
        sequence, max_lanes = generator.permutation(num_samples), 1
    else:
        sequence, max_lanes = _pooled_sequence(num_samples, block_starts, generator), MAX_LANES
    # If the last size taken is the size now, its batches belong to the division that this epoch goes on with.
    going_on = bool(taken) and taken[-1][0] == global_batch_size
    for size, batches in taken[:-1] if going_on else taken:
        sequence = np.delete(sequence, _positions(len(sequence), size, max_lanes)[:batches].reshape(-1))
    return sequence[_positions(len(sequence), global_batch_size, max_lanes)[taken[-1][1] if going_on else 0 :]]


def epoch_flips(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Which images are mirrored in an epoch: bool (num_samples,), by index, each with probability one half."""
    return numpy_generator(Stream.FLIP, seed, epoch).integers(0, 2, num_samples, np.uint8).astype(bool)


def _positions(length: int, global_batch_size: int, max_lanes: int) -> np.ndarray:
    """Which places of a sequence each batch takes: int64 (batches, global_batch_size)."""
    batches, lanes = length // global_batch_size, math.gcd(global_batch_size, max_lanes)
    per_lane = global_batch_size // lanes
    # batches * per_lane <= length / lanes, so no lane runs into the next.
    lane_starts = np.arange(lanes) * length // lanes
    positions = lane_starts[:, None] + np.arange(batches * per_lane)
    return positions.reshape(lanes, batches, per_lane).swapaxes(0, 1).reshape(batches, global_batch_size)


def _pooled_sequence(num_samples: int, block_starts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    sizes = np.diff(block_starts, append=num_samples)
    blocks = generator.permutation(len(sizes))
    ends = np.cumsum(sizes[blocks])
    begins = ends - sizes[blocks]
    # Position p of the permuted sequence lies in some block b and is row p - begins[b] of it.
    sequence = np.arange(num_samples) + np.repeat(block_starts[blocks] - begins, sizes[blocks])
    pool_begins = begins[::POOL_BLOCKS]
    for begin, end in zip(pool_begins, np.append(pool_begins[1:], num_samples)):
        generator.shuffle(sequence[begin:end])
    return sequence
