"""``eval.py sweep``: FID over a grid of guidance scales, intervals, averages and steps."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pmf.distributed.world import World, join_world
from pmf.errors import UserError
from pmf.evaluation.extractor_table import open_extractor
from pmf.evaluation.meter import compare, reliability_warnings
from pmf.evaluation.record import extractor_record, fidelity_record, write_record
from pmf.evaluation.references import open_reference
from pmf.evaluation.subjects import Subject, measure, sampler_subject
from pmf.generation.command import SamplingRequest, open_samplers, plan_sampler


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """The grid; each list has at least one value, None being the config's.

    Attributes:
        sampling: what all points share.
        output: folder for the table, the plot and one JSON a point.
    """

    sampling: SamplingRequest
    omegas: Sequence[float]
    intervals: Sequence[Sequence[float] | None]
    emas: Sequence[str | None]
    num_steps: Sequence[int | None]
    reference: str
    extractor: str | None
    extractor_weights: Path | None
    output: Path


@dataclass(frozen=True, kw_only=True)
class Point:
    """One set of images and its scores."""

    omega: float
    t_min: float
    t_max: float
    ema: str
    num_steps: int
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
        print(f"best: omega {best.omega:g}, interval {best.t_min:g} {best.t_max:g}, ema {best.ema}; {request.output}")


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
        dimension = measured.gaussian.dimension
        record = fidelity_record(
            scores,
            subject=subject,
            extractor=extractor_record(extractor, dimension),
            reference=reference.origin,
            warnings=reference.warnings + reliability_warnings(subject.num_images, reference.num_images, dimension),
            world=world,
        )
        write_record(record, request.output / f"point_{number:03d}.json")
        points.append(
            Point(
                omega=subject.origin["omega"],
                t_min=subject.origin["interval"][0],
                t_max=subject.origin["interval"][1],
                ema=subject.origin["ema"] or "-",
                num_steps=subject.origin["num_steps"],
                fid=scores.fid,
                inception_score=scores.inception_score.mean if scores.inception_score else None,
            )
        )
        _write_table(points, request.output / "sweep.csv")
    return points


def _subjects(request: SweepRequest, world: World) -> Iterator[Subject]:
    """The images of each point, average by average."""
    grid = list(itertools.product(request.num_steps, request.intervals, request.omegas))
    for ema, loaded in zip(request.emas, open_samplers(request.sampling, request.emas, world)):
        requests = [
            replace(
                request.sampling,
                ema=ema,
                overrides={**request.sampling.overrides, "num_steps": steps, "interval": interval, "omega": omega},
            )
            for steps, interval, omega in grid
        ]
        # All settings of the grid are checked before its first point is measured.
        samplers = [plan_sampler(loaded.network, loaded.saved, each) for each in requests]
        yield from (sampler_subject(sampler, each, world) for sampler, each in zip(samplers, requests, strict=True))


def _print_table(points: Sequence[Point], best: Point) -> None:
    print(f"{'omega':>8}{'t_min':>7}{'t_max':>7}{'ema':>8}{'steps':>7}{'FID':>10}{'IS':>9}")
    for p in points:
        score = f"{p.inception_score:9.3f}" if p.inception_score is not None else f"{'-':>9}"
        mark = "  <- best FID" if p is best else ""
        print(f"{p.omega:8g}{p.t_min:7g}{p.t_max:7g}{p.ema:>8}{p.num_steps:7d}{p.fid:10.4f}{score}{mark}")


def _write_table(points: Sequence[Point], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(points[0])))
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def _plot(points: Sequence[Point], path: Path) -> None:
    """FID against omega, a line for each combination of the rest."""
    from matplotlib.figure import Figure  # only here: it takes a second

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()

    def rest(point: Point) -> tuple[str, int, float, float]:
        return point.ema, point.num_steps, point.t_min, point.t_max

    for key, group in itertools.groupby(sorted(points, key=lambda p: (rest(p), p.omega)), key=rest):
        line = list(group)
        label = f"ema {key[0]}, {key[1]} step(s), [{key[2]:g}, {key[3]:g}]"
        axes.plot([p.omega for p in line], [p.fid for p in line], marker="o", label=label)
    axes.set_xlabel("guidance scale omega")
    axes.set_ylabel("FID")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
