import numpy as np
import pytest

from pmf.data.order import PLAIN_BELOW, epoch_batches, epoch_flips, steps_per_epoch
from pmf.errors import UserError

GROUP = 100


def block_starts(num_samples: int, group: int = GROUP) -> np.ndarray:
    return np.arange(0, num_samples, group)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    ("num_samples", "batch"), [(25_013, 256), (20_000, 96), (30_000, 7), (20_001, 20_000), (64, 64)]
)
def test_an_epoch_repeats_nothing_and_fills_every_batch(num_samples: int, batch: int, blocks: bool) -> None:
    starts = block_starts(num_samples) if blocks else None
    order = epoch_batches(num_samples, batch, 1, 0, starts)
    assert order.shape == (num_samples // batch, batch)
    assert order.dtype == np.int64
    assert len(np.unique(order)) == order.size
    assert order.min() >= 0
    assert order.max() < num_samples


def test_the_rows_left_over_differ_between_epochs() -> None:
    starts = block_starts(25_013)
    seen = [set(epoch_batches(25_013, 256, 1, epoch, starts).reshape(-1).tolist()) for epoch in range(2)]
    left = [set(range(25_013)) - part for part in seen]
    assert len(left[0]) == 25_013 % 256
    assert left[0] != left[1]
    assert len(seen[0] | seen[1]) > 25_000


def test_order_is_a_function_of_seed_and_epoch() -> None:
    starts = block_starts(30_000)
    first = epoch_batches(30_000, 64, 1, 0, starts)
    np.testing.assert_array_equal(first, epoch_batches(30_000, 64, 1, 0, starts))
    assert (first != epoch_batches(30_000, 64, 1, 1, starts)).mean() > 0.99
    assert (first != epoch_batches(30_000, 64, 2, 0, starts)).mean() > 0.99


def test_small_sets_are_permuted_plainly() -> None:
    small = PLAIN_BELOW - 1
    np.testing.assert_array_equal(epoch_batches(small, 10, 1, 0, block_starts(small)), epoch_batches(small, 10, 1, 0))
    big = PLAIN_BELOW
    assert (epoch_batches(big, 10, 1, 0, block_starts(big)) != epoch_batches(big, 10, 1, 0)).any()


def test_batches_mix_row_groups_and_ranks_read_different_ones() -> None:
    num_samples, batch, world = 200_000, 1024, 8
    order = epoch_batches(num_samples, batch, 1, 0, block_starts(num_samples)) // GROUP
    groups_per_batch = [len(np.unique(row)) for row in order]
    assert min(groups_per_batch) > 200
    per_rank = [set(np.unique(part).tolist()) for part in np.split(order, world, axis=1)]
    total = sum(map(len, per_rank))
    # Each rank would read all 2000 in a plain permutation; here lanes share only the pools at their ends.
    assert total < 1.15 * 2000
    plain = epoch_batches(num_samples, batch, 1, 0) // GROUP
    assert sum(len(np.unique(part)) for part in np.split(plain, world, axis=1)) == world * 2000


def test_few_row_groups_are_held_at_a_time() -> None:
    num_samples, batch, world = 200_000, 1024, 8
    order = epoch_batches(num_samples, batch, 1, 0, block_starts(num_samples)) // GROUP
    for part in np.split(order, world, axis=1):
        steps = np.repeat(np.arange(len(part)), part.shape[1])
        groups = part.reshape(-1)
        first = np.full(num_samples // GROUP, len(part))
        last = np.full(num_samples // GROUP, -1)
        np.minimum.at(first, groups, steps)
        np.maximum.at(last, groups, steps)
        held = max(((first <= step) & (step <= last)).sum() for step in range(len(part)))
        # 8 lanes a rank: one pool of 4 each, and at most a second one while a batch passes from pool to pool.
        assert held <= 64


def test_flips_are_fair_and_differ_between_epochs() -> None:
    flips = epoch_flips(10_000, 1, 0)
    np.testing.assert_array_equal(flips, epoch_flips(10_000, 1, 0))
    assert 0.48 < flips.mean() < 0.52
    assert 0.48 < (flips != epoch_flips(10_000, 1, 1)).mean() < 0.52
    assert 0.48 < (flips != epoch_flips(10_000, 2, 0)).mean() < 0.52


def test_a_set_smaller_than_a_batch_is_refused() -> None:
    assert steps_per_epoch(1000, 64) == 15
    with pytest.raises(UserError, match=r"global_batch_size is 64, but the data set has only 63 images"):
        steps_per_epoch(63, 64)
