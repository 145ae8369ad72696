"""Curves are those of the records, however few or many, and drawing them touches nothing else."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from pmf.report.curves import MOST_POINTS, curves, draw_curves, read_metrics


def record(step: int, **metrics: float) -> dict[str, float]:
    return {"step": step, "images": 10 * step, **metrics}


def training(steps: int) -> list[dict[str, float]]:
    return [
        record(step, loss=2.0, loss_u=8 / step, loss_v=6 / step, grad_norm=1.0, lr=0.1, images_per_second=5.0)
        for step in range(1, steps + 1)
    ]


def texts(figure) -> str:
    return " ".join(text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title))


def test_the_lines_are_the_records():
    records = [*training(4), record(2, fid=30.0, inception_score=3.0), record(4, fid=20.0, inception_score=5.0)]
    losses, fid, total, norm, rate, speed, inception = curves(records, flat_total=True).axes
    by_name = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert by_name["loss_u"] == [[10, 8], [20, 4], [30, 8 / 3], [40, 2]]
    assert by_name["loss_v"] == [[10, 6], [20, 3], [30, 2], [40, 1.5]]
    assert fid.lines[0].get_xydata().tolist() == [[20, 30], [40, 20]]
    assert fid.get_title() == "FID: last 20, best 20"
    assert inception.lines[0].get_xydata().tolist() == [[20, 3], [40, 5]]
    for axes, value in ((total, 2), (norm, 1), (rate, 0.1), (speed, 5)):
        assert axes.lines[0].get_ydata().tolist() == [value] * 4


def test_the_flat_total_is_explained_by_its_own_mean_and_only_where_it_is_flat_by_design():
    assert "It stays near 2 whatever happens" in texts(curves(training(4), flat_total=True))
    assert "whatever happens" not in texts(curves(training(4), flat_total=False))
    nearly_one = [{**line, "loss": 0.997} for line in training(4)]
    assert "It stays near 1 whatever happens" in texts(curves(nearly_one, flat_total=True))
    plain = [record(step, loss=4.0 / step) for step in (1, 2)]
    figure = curves(plain, flat_total=True)
    assert "whatever happens" not in texts(figure)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [4, 2]


def test_a_long_line_is_averaged_and_its_running_mean_drawn():
    records = [record(step, loss_u=1.0 + step % 2) for step in range(10 * MOST_POINTS)]
    raw, mean = curves(records, flat_total=True).axes[0].lines[:2]
    assert len(raw.get_xdata()) == MOST_POINTS
    assert raw.get_ydata().tolist() == [1.5] * MOST_POINTS  # of each ten, half are 1 and half are 2
    assert mean.get_ydata() == pytest.approx(1.5)


UNUSUAL = {
    "none": [],
    "one": [record(1, loss_u=0.5, loss_v=0.5, loss=2.0)],
    "only FID": [record(1, fid=3.0)],
    "zeros": [record(step, loss_u=0.0, loss_v=0.0, loss=0.0, lr=0.0, fid=0.0) for step in (1, 2)],
    "not finite": [record(1, loss_u=float("nan"), grad_norm=float("inf")), record(2, loss_u=0.5)],
    "negative": [record(1, loss=-1.0), record(2, loss=-2.0)],
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_histories_are_drawn(name, tmp_path):
    draw_curves(UNUSUAL[name], tmp_path / "curves.png", flat_total=True)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1000, 640)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_drawing_again_gives_the_same_file_and_draws_no_random_number(tmp_path):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for name in ("a.png", "b.png"):
        draw_curves(training(5), tmp_path / name, flat_total=True)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_records_are_read_around_what_is_torn_or_foreign(tmp_path):
    good = [record(1, loss=2.0), record(2, loss=1.0)]
    lines = [
        json.dumps(good[0]),
        "[1]",
        '{"step": 5}',
        '{"step": "x", "images": 1}',
        json.dumps(good[1]),
        '{"step": 3, "im',
    ]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff")
    assert read_metrics(tmp_path / "metrics.jsonl") == good
