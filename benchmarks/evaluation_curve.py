"""FID over a training run, from its evaluations: python benchmarks/evaluation_curve.py RUN_FOLDER --output CURVE.png"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pmf.commands import run_command
from pmf.errors import UserError
from pmf.files import read_object


def main() -> None:
    """Print a line per evaluation and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    records = [read_record(path) for path in sorted((arguments.run / "evaluation").glob("step_*.json"))]
    if not records:
        raise UserError(
            f"{arguments.run}: no evaluations; train with evaluation.every_images=N evaluation.reference=..."
        )
    for record in records:
        print(f"{record['step']:8d} steps {record['images_seen']:10,d} images   FID {record['fid']:.3f}")

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([record["images_seen"] for record in records], [record["fid"] for record in records], marker="o")
    axes.set_yscale("log")
    axes.set_xlabel("training images seen")
    axes.set_ylabel(f"FID, extractor {records[0]['extractor']['name']}")
    axes.grid(which="both", alpha=0.3)
    figure.savefig(arguments.output, dpi=120)


def read_record(path: Path) -> dict[str, Any]:
    """An evaluation's result file."""
    advice = "remove it, and the curve is drawn without it"
    record = read_object(path, advice)
    if not {"step", "images_seen", "fid", "extractor"} <= record.keys():
        raise UserError(f"{path}: is no evaluation of a training run; {advice}")
    return record


if __name__ == "__main__":
    run_command(main)
