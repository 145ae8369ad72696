"""The verb ``eval.py sweep``: FID over a grid of sampling options."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pmf.config.sampling_options import Use, columns_of, options_for
from pmf.config.sections import sampling_section
from pmf.distributed.world import World, join_world
from pmf.errors import UserError
from pmf.evaluation.extractor_table import open_extractor
from pmf.evaluation.meter import compare
from pmf.evaluation.record import fidelity_record, write_record
from pmf.evaluation.references import open_reference
from pmf.evaluation.subjects import Subject, generated_subject, measure
from pmf.files import complete_or_absent
from pmf.generation.command import plan_for_averages, with_overrides
from pmf.generation.sampling_request import SamplingRequest


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """The grid.

    Attributes:
        sampling: what all points share.
        averages: of the checkpoint, at least one; None is the config's.
        grid: overrides of the sampling section, a mapping for each point of one average.
        output: folder for the table, the plot and one JSON a point.
    """

    sampling: SamplingRequest
    averages: Sequence[str | None]
    grid: Sequence[Mapping[str, Any]]
    reference: str
    extractor: str | None
    extractor_weights: Path | None
    output: Path


@dataclass(frozen=True, kw_only=True)
class Point:
    """One set of images and its scores.

    Attributes:
        options: every sampling option that was or could have been swept, by the names of the table's columns.
    """

    options: dict[str, Any]
    fid: float
    inception_score: float | None


def run_sweep(request: SweepRequest) -> None:
    """Measure every point; print a table with the best marked; write ``sweep.csv``, ``sweep.png`` and the JSONs.

    The features of the reference are computed once, and those of each set of images once. There is one network, into
    which each average is read once. The table is rewritten after every point.

    Raises:
        UserError: anything about the request, the checkpoint or the reference that does not fit.
    """
    if request.output.exists() and (not request.output.is_dir() or any(request.output.iterdir())):
        problem = "is not empty" if request.output.is_dir() else "is a file"
        raise UserError(f"--output {request.output}: {problem}; give a new folder")
    world = join_world()
    points = _measure_all(request, world)
    if world.is_main:
        best = min(points, key=lambda point: point.fid)
        _print_table(points, best)
        _plot(points, request.output / "sweep.png")
        print(f"best: {_told(best.options)}; {request.output}")


def _measure_all(request: SweepRequest, world: World) -> list[Point]:
    extractor, reference, points = None, None, []
    for number, subject in enumerate(_subjects(request, world)):
        if extractor is None or reference is None:
            extractor = open_extractor(request.extractor, request.extractor_weights, subject.shape, world)
            reference = open_reference(request.reference, subject, extractor, world, keep_features=False)
            for warning in reference.warnings if world.is_main else []:
                print(f"warning: {warning}", file=sys.stderr)
        measured = measure(subject, extractor, world, f"point {number}", keep_features=False)
        if not world.is_main:
            continue
        scores = compare(measured, reference.gaussian, kid=False, prc=False)
        record = fidelity_record(
            scores, subject=subject, measured=measured, extractor=extractor, reference=reference, world=world
        )
        write_record(record, request.output / f"point_{number:03d}.json")
        points.append(
            Point(
                options=_columns(subject.origin),
                fid=scores.fid,
                inception_score=scores.inception_score.mean if scores.inception_score else None,
            )
        )
        _write_table(points, request.output / "sweep.csv")
    return points


def _subjects(request: SweepRequest, world: World) -> Iterator[Subject]:
    """The images of each point, average by average."""
    shared = request.sampling
    for average, loaded in zip(request.averages, plan_for_averages(shared, request.averages, world)):
        requests = [
            replace(shared, ema=average, overrides={**shared.overrides, **overrides}) for overrides in request.grid
        ]
        # All settings of the grid are checked before its first point is measured.
        planned = [with_overrides(loaded, each) for each in requests]
        yield from (generated_subject(images, each, world) for images, each in zip(planned, requests, strict=True))


def _columns(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options of a record of generated images, by the names of the table's columns."""
    columns: dict[str, Any] = {}
    for name, option in options_for(sampling_section(), Use.IMAGES, Use.WEIGHTS).items():
        names, value = columns_of(name, option), origin[name]
        columns |= zip(names, value if len(names) > 1 else ["-" if value is None else value], strict=True)
    return columns


def _print_table(points: Sequence[Point], best: Point) -> None:
    rows = [[*points[0].options, "FID", "IS"]]
    for point in points:
        score = "-" if point.inception_score is None else f"{point.inception_score:.3f}"
        rows.append([*map(_text, point.options.values()), f"{point.fid:.4f}", score])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    marks = ["", *("  <- best FID" if point is best else "" for point in points)]
    for row, mark in zip(rows, marks, strict=True):
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) + mark)


def _write_table(points: Sequence[Point], path: Path) -> None:
    rows = [{**point.options, "fid": point.fid, "inception_score": point.inception_score} for point in points]
    with complete_or_absent(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _plot(points: Sequence[Point], path: Path) -> None:
    """FID against the number that has most values, the first of them if several have; a line for each of the rest."""
    from matplotlib.figure import Figure  # only here: it takes a second

    numbers = [name for name, value in points[0].options.items() if isinstance(value, int | float)]
    across = max(numbers, key=lambda name: len({point.options[name] for point in points}))
    lines: dict[str, list[Point]] = {}
    for point in points:
        rest = {name: value for name, value in point.options.items() if name != across}
        lines.setdefault(_told(rest), []).append(point)

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, line in lines.items():
        line.sort(key=lambda point: point.options[across])
        axes.plot([point.options[across] for point in line], [point.fid for point in line], marker="o", label=label)
    axes.set_xlabel(across)
    axes.set_ylabel("FID")
    axes.legend(fontsize="small")
    with complete_or_absent(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _told(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in options.items())


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
