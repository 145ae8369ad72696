"""The strip shows the first image of each class of each grid, in the order of the steps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pmf.report.strip import LABEL, LARGEST, TIMES, chosen, draw_strip


@pytest.fixture
def samples(tmp_path):
    """Writes grids of which column 0 has the given brightness, row by row, and the others are black."""

    def write(step: int, rows: list[int], side: int = 32):
        cell = side + 1
        grid = np.full((len(rows) * cell + 1, 10 * cell + 1), 255, np.uint8)
        for row, brightness in enumerate(rows):
            for column in range(10):
                inner = grid[row * cell + 1 : (row + 1) * cell, column * cell + 1 : (column + 1) * cell]
                inner[:] = 0 if column else brightness
        Image.fromarray(grid).save(tmp_path / f"step_{step:08d}.png")
        return tmp_path

    return write


def centres(path, rows: int, columns: int, cell: int) -> list[list[int]]:
    with Image.open(path) as strip:
        pixels = np.asarray(strip.convert("L"))
    assert pixels.shape[1] == columns * cell + 1
    return [
        [int(pixels[LABEL + row * cell + cell // 2, column * cell + cell // 2]) for column in range(columns)]
        for row in range(rows)
    ]


def test_a_column_is_a_grid_and_a_row_is_a_class(samples):
    for step, rows in ((2, [10, 20, 30]), (10, [40, 50, 60]), (4, [70, 80, 90])):
        folder = samples(step, rows)
    assert draw_strip(folder, 10) == folder / "strip.png"
    assert centres(folder / "strip.png", 3, 3, 33) == [[10, 70, 40], [20, 80, 50], [30, 90, 60]]


def test_grids_beyond_the_step_and_other_pictures_are_left_out(samples):
    folder = samples(2, [10])
    samples(4, [20])
    (folder / "step_last.png").write_text("no grid")
    (folder / "final.png").write_text("no grid")
    draw_strip(folder, 3)
    assert centres(folder / "strip.png", 1, 1, 33) == [[10]]


def test_without_grids_there_is_none(tmp_path):
    assert draw_strip(tmp_path, 10) is None
    assert draw_strip(tmp_path / "nowhere", 10) is None


def test_large_images_are_reduced(samples):
    folder = samples(1, [100, 200], side=255)
    draw_strip(folder, 1)
    assert centres(folder / "strip.png", 2, 1, LARGEST) == [[100], [200]]


def test_of_many_grids_some_are_chosen_evenly(samples):
    many = [samples(step, [step]) / f"step_{step:08d}.png" for step in range(1, 31)]
    found = [int(path.stem[-8:]) for path in chosen(many)]
    assert found[0] == 1 and found[-1] == 30 and len(found) == TIMES
    assert set(np.diff(found)) <= {2, 3}
    assert chosen(many[:TIMES]) == many[:TIMES]
