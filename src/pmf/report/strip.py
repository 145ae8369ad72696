"""``samples/strip.png``: the sample grids of a run side by side in time, so that one sees images come into being."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pmf.files import complete_or_absent

TIMES = 12
"""Grids at most."""
IN_A_ROW = 10
"""Images in a row of a grid, which has a row for each of ten classes."""
LARGEST = 96
"""Pixels along a side of an image on the strip; larger ones are reduced."""
LABEL = 16
"""Pixels for the step above a column."""


def draw_strip(samples: Path, step: int) -> Path | None:
    """The first image of each class in the grids ``step_*.png``, a column for each grid, those between left out evenly.

    Args:
        samples: the folder of the grids; the strip is written beside them.
        step: how far the run is; grids beyond it are of a course that was given up.

    Returns:
        The strip; None where there are no grids.

    Raises:
        OSError: a file cannot be read or written.
    """
    grids = chosen([path for number, path in _grids(samples) if number <= step])
    if not grids:
        return None
    columns = [_first_column(path) for path in grids]
    width, height = columns[-1].size
    strip = Image.new("RGB", (len(columns) * width + 1, height + LABEL), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(10)
    for number, (path, column) in enumerate(zip(grids, columns)):
        strip.paste(column.resize((width, height)), (number * width, LABEL))
        draw.text(((number + 0.5) * width, LABEL / 2), _short(_step_of(path)), fill="black", font=font, anchor="mm")
    target = samples / "strip.png"
    with complete_or_absent(target) as temporary:
        strip.save(temporary, format="png")
    return target


def chosen(grids: list[Path]) -> list[Path]:
    """``TIMES`` of them at most, evenly, the first and the last among them."""
    if len(grids) <= TIMES:
        return grids
    places = np.linspace(0, len(grids) - 1, TIMES).round().astype(int)
    return [grids[place] for place in places]


def _grids(samples: Path) -> list[tuple[int, Path]]:
    found = [path for path in samples.glob("step_*.png") if re.fullmatch(r"step_\d+", path.stem)]
    return sorted((_step_of(path), path) for path in found)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _first_column(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        grid = opened.convert("RGB")
    cell = (grid.width - 1) // IN_A_ROW  # an image and the line on its left
    column = grid.crop((0, 0, cell, grid.height))
    if cell > LARGEST:
        column = column.resize((LARGEST, round(grid.height * LARGEST / cell)), Image.Resampling.BOX)
    return column


def _short(step: int) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 and step % 100 == 0 else str(step)
