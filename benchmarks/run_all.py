"""Every benchmark in turn, one table, one dated file for this hardware: python benchmarks/run_all.py [--output DIR]

On a CPU the step is measured on a third of B/16 in width; with a GPU on B/16 itself, at batch 64 and 128. Nothing else
should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch

from benchmarks.environment import environment

HERE = Path(__file__).parent
CPU_RUNS = {
    "step": ["bench_step.py", "--preset", "cpu"],
    "optimizer": ["bench_optimizer.py", "--preset", "tiny"],
    "sampling": ["bench_sampling.py", "--model", "pmf_b_16", "--batch-size", "4"],
    "loader": ["bench_loader.py", "--images", "2000", "--workers", "0", "1", "2"],
    "evaluation": ["bench_evaluation.py"],
    "memory": ["bench_memory.py"],
}
GPU_RUNS = {
    "step, batch 64": ["bench_step.py", "--preset", "b16"],
    "step, batch 128": ["bench_step.py", "--preset", "b16", "--batch-size", "128"],
    "optimizer": ["bench_optimizer.py", "--preset", "b16", "--device", "cuda"],
    "sampling": ["bench_sampling.py", "--model", "pmf_b_16", "--batch-size", "64", "--repeats", "10"],
    "loader": ["bench_loader.py", "--images", "4000", "--workers", "4", "8"],
    "evaluation": ["bench_evaluation.py", "--batch-size", "64", "--repeats", "10"],
}


KEYS = (
    "throughput_ratio",
    "compiled_throughput_ratio",
    "memory_ratio",
    "flop_ratio",
    "optimizer_share",
    "largest_error",
)


def run(arguments: list[str]) -> dict[str, Any]:
    """One benchmark's JSON; what it prints goes through."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        subprocess.run([sys.executable, str(HERE / arguments[0]), *arguments[1:], "--json", str(output)], check=True)
        return json.loads(output.read_text())


def figures(name: str, result: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Rows of the table: benchmark, what, figure."""
    rows: list[tuple[str, str, float]] = []
    for variant, rate in result.get("images_per_second", {}).items():
        rows.append((name, f"{variant}, images/s", rate))
    for key in KEYS:
        if result.get(key) is not None:
            rows.append((name, key.replace("_", " "), result[key]))
    for variant, share in (result.get("mfu") or {}).items():
        rows.append((name, f"{variant}, MFU", share))
    for variant, milliseconds in result.get("milliseconds", {}).items():
        rows.append((name, f"{variant}, ms", milliseconds))
    for row in result.get("results", []):
        rows.append((name, f"{row['workers']} workers, images/s", row["images_per_second"]))
    return rows


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the result file")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = environment(device)
    results = {name: run(command) for name, command in (GPU_RUNS if device == "cuda" else CPU_RUNS).items()}
    print(f"\n{report['hardware']}, {report['date']}, torch {torch.__version__}")
    print("| benchmark | what | figure |\n|---|---|---|")
    for name, result in results.items():
        for benchmark, what, figure in figures(name, result):
            print(f"| {benchmark} | {what} | {figure:.3g} |")
    hardware = re.sub(r"[^a-z0-9]+", "-", str(report["hardware"]).lower()).strip("-")
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{report['date']}-{hardware}.json"
    path.write_text(json.dumps({**report, "benchmarks": results}, indent=1) + "\n")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
