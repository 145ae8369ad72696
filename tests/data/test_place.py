"""The place in the data where batches change size: nothing is seen twice, nothing is left out, nothing else moves."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from pmf.data.options import DataConfig
from pmf.data.order import PLAIN_BELOW, epoch_batches, steps_per_epoch
from pmf.data.place import Place, resumed_place, steps_in_all
from pmf.errors import UserError
from tests.data.batches import load

LARGE = PLAIN_BELOW + 5_013
GROUPS = np.arange(0, LARGE, 100)


def pieces(num_samples: int, starts: np.ndarray | None, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """The batches of each stretch of (batch size, batches) of an epoch; the last stretch has all that are left."""
    found, taken = [], ()
    for size, batches in sizes:
        place = Place(num_samples=num_samples, epoch=3, taken=taken)
        left = epoch_batches(num_samples, size, 1, 3, starts, taken)
        assert left.shape == (place.left(size), size)
        found.append(left[:batches])
        taken = place.after(batches, size).taken
    return [*found[:-1], left]


@pytest.mark.parametrize("starts", [None, GROUPS], ids=["plain", "row groups"])
@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 100), (128, 0)],
        [(256, 30), (96, 17), (1000, 0)],  # other numbers of lanes
        [(7, 1), (64, 200), (7, 0)],
        [(64, 10), (64, 20), (512, 3), (64, 0)],  # stretches of one size are one
    ],
)
def test_an_epoch_in_batches_of_several_sizes_has_every_image_once(sizes, starts):
    parts = pieces(LARGE, starts, sizes)
    seen = np.concatenate([part.reshape(-1) for part in parts])
    assert len(np.unique(seen)) == len(seen)
    assert LARGE - len(seen) < sizes[-1][0]  # less than a batch is left over


@pytest.mark.parametrize("starts", [None, GROUPS], ids=["plain", "row groups"])
def test_of_one_size_an_epoch_is_the_same_in_one_stretch_or_many(starts):
    whole = epoch_batches(LARGE, 96, 1, 3, starts)
    parts = pieces(LARGE, starts, [(96, 1), (96, 100), (96, 7), (96, 0)])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_plain_epoch_goes_on_at_the_image_that_it_has_reached():
    seen = [part.reshape(-1) for part in pieces(300, None, [(24, 3), (10, 4), (50, 0)])]
    order = epoch_batches(300, 300, 1, 3).reshape(-1)
    np.testing.assert_array_equal(np.concatenate(seen), order[: 24 * 3 + 10 * 4 + 50 * 3])


def test_batches_mix_row_groups_after_a_change_as_before():
    before, after = pieces(LARGE, GROUPS, [(256, 20), (512, 0)])
    groups = [len(np.unique(batch // 100)) for batch in (*before, *after)]
    assert min(groups) > 75  # in order of the file it would be 3 and 6


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_after_many_steps_of_one_size_the_place_is_what_step_and_size_say(size):
    per_epoch, place = steps_per_epoch(300, size), Place(num_samples=300)
    for step in range(1, 3 * per_epoch + 2):
        place = place.after(1, size)
        assert place == Place(num_samples=300).after(step, size)
        assert (place.epoch, place.taken) == ((step - 1) // per_epoch, ((size, (step - 1) % per_epoch + 1),))
        assert place.passes(size) == pytest.approx(step / per_epoch, rel=1e-15)


def test_a_place_survives_json_and_another_data_set_begins_a_new_epoch():
    place = Place(num_samples=300, epoch=4).after(3, 24).after(2, 50)
    saved = json.loads(json.dumps(dataclasses.asdict(place)))
    assert resumed_place(saved, 999, 50, 300) == place
    assert resumed_place(saved, 999, 50, 310) == Place(num_samples=310, epoch=5)
    assert resumed_place(None, 17, 24, 300) == Place(num_samples=300, epoch=1, taken=((24, 5),))
    assert resumed_place(None, 0, 0, 300) == Place(num_samples=300)


def test_the_loader_goes_on_in_batches_of_another_size(image_config: DataConfig):
    """300 images: 72 in batches of 24, 100 in batches of 50, and on in batches of 12 into the next epoch."""
    config = image_config.model_copy(update={"horizontal_flip": True})
    place, step, seen = Place(num_samples=300), 0, []
    for size, steps in ((24, 3), (50, 2), (12, 14)):
        batches = load(
            config, global_batch_size=size, micro_batch_size=size, start_step=step, num_steps=steps, place=place
        )
        assert [batch.step for batch in batches] == list(range(step, step + steps))
        seen += [index for batch in batches for index in batch.indices.tolist()]
        step, place = step + steps, place.after(steps, size)
    first, second = seen[: 72 + 100 + 120], seen[72 + 100 + 120 :]
    assert len(set(first)) == len(first) == 292  # eight are left over, fewer than twelve
    assert (place.epoch, place.taken) == (1, ((12, 4),))
    assert second == epoch_batches(300, 12, 3, 1)[:4].reshape(-1).tolist()


def steps_of_run(place: Place, step: int, *, max_steps: int | None = None, epochs: float | None = None) -> int:
    return steps_in_all(place, step, global_batch_size=50, max_steps=max_steps, epochs=epochs)


def test_epochs_count_those_with_another_batch_size():
    """300 images: 24 x 5 = 120 of the first epoch are seen; three batches of 50 are left in it."""
    place = Place(num_samples=300).after(5, 24)
    assert steps_of_run(place, 5, epochs=1) == 5 + 3
    assert steps_of_run(place, 5, epochs=2) == 5 + 3 + 6
    assert steps_of_run(place, 5, epochs=2.5) == 5 + 3 + 6 + 3
    assert steps_of_run(place, 5, max_steps=40) == 40
    assert place.passes(50) == 120 / 270
    assert place.after(3, 50).passes(50) == 1.0
    with pytest.raises(UserError, match=r"training.epochs is 0.1, and this run is beyond that, at step 5"):
        steps_of_run(place, 5, epochs=0.1)


@pytest.mark.parametrize("epochs", [0.1, 1, 1.1, 2.3, 16.1, 160])
def test_the_length_of_a_run_of_one_batch_size_is_the_same_wherever_it_is_asked(epochs):
    expected = math.ceil(epochs * 6)
    for step in range(expected + 1):
        place = Place(num_samples=300).after(step, 50)
        assert steps_of_run(place, step, epochs=epochs) == expected
