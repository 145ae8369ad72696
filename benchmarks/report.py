"""A result file of first_contact.py as tables for docs/performance.md: python benchmarks/report.py RESULT.json ...

Every figure is one of the file; a stage that did not do its work is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

from pmf.commands import run_command
from pmf.errors import UserError

# Columns of the table of whole steps: heading, and the path of the figure among the results of a stage.
STEP_COLUMNS = {
    "images/s": ("images_per_second",),
    "MFU": ("mfu",),
    "s / step": ("step_s",),
    "micro-batch": ("micro_batch",),
    "its device ms": ("micro_batch_ms", "device_ms"),
    "its host ms": ("micro_batch_ms", "host_ms"),
    "optimizer ms": ("optimizer_ms", "device_ms"),
    "its share": ("optimizer_share",),
    "draws, host ms": ("drawing_host_ms",),
    "peak GiB": ("peak_gib",),
    "graphs": ("graphs",),
    "warm-up s": ("warm_up_s",),
}


def report(content: Mapping[str, Any]) -> str:
    """Markdown.

    Raises:
        KeyError: the file is of something else.
    """
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    gpu = ", ".join(f"{name} {figure(value)}" for name, value in content.get("gpu", {}).items())
    stages: dict[str, dict[str, Any]] = content["stages"]
    steps = {name: stage for name, stage in stages.items() if name.startswith("steps_") and stage.get("results")}
    blocks = [
        f"{content['model']} on {content['hardware']}{f' ({gpu})' if gpu else ''}, {content['date']}; {versions}; "
        f"`{content['command']}`"
    ]
    if steps:
        blocks.append(step_table(steps))
    rows = [
        f"| {name} | {' / '.join(path)} | {figure(value)} |"
        for name, stage in stages.items()
        if name not in steps
        for path, value in leaves(stage.get("results", {}))
    ]
    if rows:
        blocks.append("\n".join(["| stage | what | figure |", "|---|---|---|", *rows]))
    incomplete = [
        f"- {name}: {stage['status']}{f' ({error})' if (error := stage.get('error')) else ''}"
        for name, stage in stages.items()
        if stage["status"] != "ok"
    ]
    if incomplete:
        blocks.append("\n".join(["Not measured, or not to the end:", "", *incomplete]))
    return "\n\n".join(blocks) + "\n"


def step_table(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each stage of whole steps; medians where there are several."""
    lines = [f"| stage | kind | {' | '.join(STEP_COLUMNS)} |", "|---" * (2 + len(STEP_COLUMNS)) + "|"]
    for name, stage in steps.items():
        results = stage["results"]
        kind = "compiled" if results.get("compiled") else "eager"
        if results.get("perceptual"):
            kind += f", perceptual ({results['perceptual']})"
        values = [figure(lookup(results, path)) for path in STEP_COLUMNS.values()]
        lines.append(f"| {name} | {kind} | {' | '.join(values)} |")
    return "\n".join(lines)


def lookup(results: Any, path: tuple[str, ...]) -> Any:
    """The value at a path, the median of several; None where there is none."""
    for key in path:
        results = results.get(key) if isinstance(results, Mapping) else None
    return statistics.median(results) if isinstance(results, list) and results else results


def leaves(results: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All values of nested results with their paths; each entry of a list of mappings, or a list of numbers, is one."""
    if isinstance(results, Mapping):
        for key, value in results.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(results, list) and results and isinstance(results[0], Mapping):
        for number, value in enumerate(results, start=1):
            yield (*path, str(number)), ", ".join(f"{key} {figure(inner)}" for key, inner in value.items())
    else:
        yield path, results


def figure(value: Any) -> str:
    """Four digits of a number; a dash for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(figure, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


def main() -> None:
    """Read and print.

    Raises:
        UserError: a file is not of first_contact.py.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    for path in parser.parse_args().results:
        try:
            print(report(json.loads(path.read_text())))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: is not a result file of benchmarks/first_contact.py; give one") from None


if __name__ == "__main__":
    run_command(main)
