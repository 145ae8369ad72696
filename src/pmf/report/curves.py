"""``curves.png``: what ``metrics.jsonl`` says of a run, and nothing else, so that it can be drawn again at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmf.files import complete_or_absent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 1500
"""Of a line; of longer ones, this many neighbours are averaged into each point."""
SMOOTHED = 60
"""Points from which on a running mean is drawn over a line."""
WIDTH, HEIGHT, DPI = 10.0, 6.4, 100
BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#8a8a8a"

Line = tuple[list[float], list[float]]
"""Images seen, and a metric, of the records that have it."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` in their order; lines that are torn or of something else are passed over.

    Raises:
        OSError: it cannot be read.
    """
    records = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and _is_number(record.get("step")) and _is_number(record.get("images")):
            records.append(record)
    return records


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path, *, flat_total: bool) -> None:
    """Write :func:`curves`, which see, as a PNG, complete or absent.

    Raises:
        OSError: it cannot be written.
    """
    figure = curves(records, flat_total=flat_total)
    with complete_or_absent(path) as temporary:
        figure.savefig(temporary, format="png")


def curves(records: Sequence[Mapping[str, Any]], *, flat_total: bool) -> Figure:
    """Losses, FID, gradient norm, learning rate and speed against the images seen.

    Args:
        records: as :func:`read_metrics` gives them; there may be few or none.
        flat_total: whether the total loss says nothing, as with ``objective.adaptive_power=1``; it is then explained.
    """
    from matplotlib.figure import Figure  # only here: it takes a second

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
    figure.subplots_adjust(left=0.065, right=0.945, top=0.95, bottom=0.08, hspace=0.26, wspace=0.36)
    panels = figure.subplots(2, 3).flat
    plain = [name for name in ("loss_u", "loss_v") if _line(records, name)[0]]
    _panel(next(panels), "Plain losses" if plain else "Loss", records, plain or ["loss"], log=True)
    _fidelity(next(panels), records)
    _total(next(panels), records, explained=flat_total and bool(plain))
    _panel(next(panels), "Gradient norm", records, ["grad_norm"], log=True)
    _panel(next(panels), "Learning rate", records, ["lr"])
    _panel(next(panels), "Images per second", records, ["images_per_second"])
    for axes in figure.axes[3:6]:
        axes.set_xlabel("images seen", fontsize=9)
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _panel(axes: Any, title: str, records: Sequence[Mapping[str, Any]], names: list[str], log: bool = False) -> None:
    lines = {name: _line(records, name) for name in names}
    values = [value for _, line in lines.values() for value in line]
    for (name, (images, line)), color in zip(lines.items(), (BLUE, ORANGE)):
        long = len(line) >= SMOOTHED
        mark = {"marker": "o", "markersize": 3} if len(line) < 15 else {}
        axes.plot(
            images, line, color=color, alpha=0.3 if long else 1, linewidth=1.3, label=None if long else name, **mark
        )
        if long:
            axes.plot(images, _running_mean(line), color=color, linewidth=1.6, label=name)
    _dress(axes, title, empty=not values)
    if log and _spread(values) > 3:
        _log_scale(axes, values)
    elif values and min(values) >= 0:
        axes.set_ylim(0, 1.05 * max(values) or 1)
    if len(names) > 1 and values:
        axes.legend(fontsize=8, frameon=False)


def _fidelity(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    images, line = _line(records, "fid")
    axes.plot(images, line, color=BLUE, marker="o", markersize=3, linewidth=1.3)
    _dress(axes, "FID", empty=not line, reason="no evaluations: set evaluation.every_images")
    if not line:
        return
    if _spread(line) > 3:
        _log_scale(axes, line)
    best = min(range(len(line)), key=line.__getitem__)
    axes.plot(images[best], line[best], color=ORANGE, marker="o", markersize=5)
    axes.set_title(f"FID: last {line[-1]:.3g}, best {line[best]:.3g}", fontsize=10)
    images, scores = _line(records, "inception_score")
    if scores:
        right = axes.twinx()
        right.plot(images, scores, color=GREY, linewidth=1, linestyle="--")
        right.set_ylabel("Inception score (dashed)", fontsize=8, color=GREY)
        right.locator_params(axis="y", nbins=5)


def _total(axes: Any, records: Sequence[Mapping[str, Any]], *, explained: bool) -> None:
    """The loss that is minimised, and why it is flat where that is so by design."""
    images, line = _line(records, "loss")
    axes.plot(images, line, color=GREY, linewidth=1.3)
    _dress(axes, "Total loss", empty=not line)
    if not line:
        return
    mean = sum(line) / len(line)
    if min(line) >= 0:
        axes.set_ylim(0, 1.8 * max(line) or 1)
    if explained:
        text = (
            f"It stays near {mean:.2g} whatever happens: the adaptive\n"
            "weight divides each of its terms by itself, the\n"
            "perceptual ones too. Watch the plain losses\nand FID instead."
        )
        axes.text(0.5, 0.96, text, transform=axes.transAxes, ha="center", va="top", fontsize=7.5)


def _dress(axes: Any, title: str, *, empty: bool, reason: str = "nothing logged yet") -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(nbins=5)
    if empty:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", fontsize=8, color=GREY)


def _spread(values: Sequence[float]) -> float:
    """The largest by the smallest; 1 where that means nothing."""
    return max(values) / min(values) if values and min(values) > 0 else 1.0


def _log_scale(axes: Any, values: Sequence[float]) -> None:
    """With plain numbers at few ticks: they are most of the time that a drawing takes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _spread(values) < 100 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _line(records: Iterable[Mapping[str, Any]], name: str) -> Line:
    pairs = [(float(record["images"]), float(record[name])) for record in records if _is_number(record.get(name))]
    width = -(-len(pairs) // MOST_POINTS) or 1
    parts = [pairs[start : start + width] for start in range(0, len(pairs), width)]
    return [part[-1][0] for part in parts], [sum(value for _, value in part) / len(part) for part in parts]


def _running_mean(line: Sequence[float]) -> list[float]:
    """Exponential, over about a thirtieth of the line."""
    kept, means = line[0], []
    for value in line:
        kept += (value - kept) * 30 / len(line)
        means.append(kept)
    return means


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
