"""The order of images: a pure function of data set, seed, epoch and global batch size, and of nothing else.

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

from pmf.distributed import Stream, numpy_generator
from pmf.errors import UserError

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
    num_samples: int, global_batch_size: int, seed: int, epoch: int, block_starts: np.ndarray | None = None
) -> np.ndarray:
    """All batches of an epoch.

    Args:
        num_samples: images in the data set.
        global_batch_size: images per optimizer step over all ranks.
        seed: of the run.
        epoch: 0, 1, ...
        block_starts: first index of each block that is read as a whole, int64 (blocks,), ascending from 0.

    Returns:
        int64 (steps_per_epoch, global_batch_size): distinct indices in [0, num_samples).

    Raises:
        UserError: for a data set smaller than one batch.
    """
    steps = steps_per_epoch(num_samples, global_batch_size)
    generator = numpy_generator(Stream.ORDER, seed, epoch)
    if block_starts is None or num_samples < PLAIN_BELOW:
        order = generator.permutation(num_samples)
        return order[: steps * global_batch_size].reshape(steps, global_batch_size)
    sequence = _pooled_sequence(num_samples, block_starts, generator)
    lanes = math.gcd(global_batch_size, MAX_LANES)
    per_lane = global_batch_size // lanes
    # steps * per_lane <= num_samples / lanes, so no lane runs into the next.
    lane_starts = np.arange(lanes) * num_samples // lanes
    positions = lane_starts[:, None] + np.arange(steps * per_lane)
    return sequence[positions.reshape(lanes, steps, per_lane).swapaxes(0, 1).reshape(steps, global_batch_size)]


def epoch_flips(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Which images are mirrored in an epoch: bool (num_samples,), by index, each with probability one half."""
    return numpy_generator(Stream.FLIP, seed, epoch).integers(0, 2, num_samples, np.uint8).astype(bool)


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
