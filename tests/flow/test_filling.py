"""How many sizes the passes have, how many rows only fill them, and that what fills counts for nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pmf.flow.filling import Filling, fill, weigh
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.flow.transfer import move_together
from pmf.perceptual.distances import PerceptualDistances
from pmf.randomness import Stream, torch_generator
from tests.flow.methods import METHODS
from tests.flow.small_step import CLASSES, ROWS, gradients, inputs, with_drops, worst_relative_error

STEPS = 50
NOTHING = PerceptualDistances({}, {}, 32)


@pytest.mark.parametrize("micro_batch", [64, 128])
def test_dealt_passes_have_few_sizes_and_few_rows_that_fill(micro_batch):
    """Over 200 steps of all micro-batches docs/performance.md counts at most 1.6 % more; here are 50, of one each."""
    settings = PixelMeanFlowOptions()
    objectives = [
        PixelMeanFlow(settings, num_classes=1, perceptual=NOTHING, perceptual_max_t=0.8, few_sizes=few)
        for few in (False, True)
    ]
    count, sizes, rows = 1024 // micro_batch, [set(), set()], [[0, 0], [0, 0]]
    for step in range(STEPS):
        dealt = objectives[0].draw_rows(1024, count, [step % count], torch_generator(Stream.DRAWS, 42, step))
        for few, objective in enumerate(objectives):
            draws = objective.draw(torch.zeros(micro_batch, 0, 0, 0), torch.Generator(), dealt[0])
            passes = micro_batch // 2 + len(draws.unconditional_rows), len(draws.perceptual_rows)
            rows[few] = [total + more for total, more in zip(rows[few], passes, strict=True)]
            if few:
                for known, size in zip(sizes, passes, strict=True):
                    known.add(size)
    assert [len(known) <= 4 for known in sizes] == [True, True], sizes
    assert {size % (micro_batch // 32) for known in sizes for size in known} == {0}
    for plain, filled in zip(*rows, strict=True):
        assert plain < filled < 1.03 * plain


def test_nothing_is_filled_unless_asked_for():
    plain, few, static = Filling(), Filling(few_sizes=True), Filling(static_shapes=True)
    assert [plain.guidance(needed, 96, 64) for needed in (0, 1, 33, 96)] == [2, 1, 33, 96]
    assert [few.guidance(needed, 96, 64) for needed in (0, 1, 33, 96)] == [2, 2, 34, 96]
    assert [few.guidance(needed, 192, 128) for needed in (0, 1, 33, 96)] == [4, 4, 36, 96]
    assert [static.guidance(needed, 96, 64) for needed in (0, 33)] == [96, 96]
    assert [plain.perceptual(needed, 64) for needed in (0, 7)] == [0, 7]
    assert [few.perceptual(needed, 64) for needed in (0, 7)] == [0, 8]
    assert fill(torch.tensor([3, 5]), 4).tolist() == [3, 5, 3, 3]
    assert fill(torch.tensor([], dtype=torch.int64), 2).tolist() == [0, 0]
    assert weigh(torch.tensor([0.5, 2.0]), 4).tolist() == [0.5, 2, 0, 0]


def test_perceptual_rows_that_nobody_looks_at_are_no_size_of_their_own():
    settings, standard = PixelMeanFlowOptions(), inputs()[2]
    objectives = [PixelMeanFlow(settings, num_classes=1, perceptual=what, few_sizes=True) for what in (None, NOTHING)]
    assert [len(objective.shape(standard).perceptual_rows) for objective in objectives] == [0, ROWS]


def test_no_unlabelled_row_or_one_is_no_size_of_its_own():
    """Compilers prepare both each for itself, whatever else they know."""
    settings, standard = PixelMeanFlowOptions(), inputs()[2]
    for few, expected in ((False, (0, 1)), (True, (2, 2))):
        objective = PixelMeanFlow(settings, num_classes=1, few_sizes=few)
        shaped = [objective.shape(with_drops(standard, dropped)) for dropped in (ROWS, ROWS - 1)]
        assert tuple(len(draws.unconditional_rows) for draws in shaped) == expected
        assert [int((draws.unconditional_weight != 0).sum()) for draws in shaped] == [0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_passes_of_other_sizes_give_the_same_gradients(method):
    images, labels, standard = inputs()
    chosen, network = METHODS[method], METHODS[method].network()
    found, sizes = [], []
    for filling in ({}, {"few_sizes": True}):
        objective = chosen.kind(chosen.options(), num_classes=CLASSES, **filling)
        draws = objective.shape(replace(standard, uniform_drop=(torch.arange(8) >= 1).double()))
        sizes.append([len(value) for value in vars(draws).values() if isinstance(value, torch.Tensor)])
        found.append(gradients(objective.loss(network, images, labels, draws).total, network))
    assert sizes[0] != sizes[1], "otherwise this says nothing"
    # float64, the same rows in passes of other sizes
    assert worst_relative_error(found[1], found[0]) < 1e-12


def test_tensors_that_move_together_arrive_as_they_were():
    tensors = {"t": torch.rand(5), "rows": torch.arange(3), "none": torch.arange(0), "dropped": torch.rand(3) < 0.5}
    moved = move_together(tensors, torch.device("cpu"))
    assert {name: tensor.tolist() for name, tensor in moved.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
