"""Every benchmark in turn, one table, one dated file for this hardware: python benchmarks/run_all.py [--output DIR]

On a CPU the step is measured on a third of B/16 in width; with a GPU on B/16 itself, at batch 64 and 128. Nothing else
should run on the machine. The file is rewritten after each benchmark. One that fails is recorded with what it had
measured, one that needs a package that is not installed says which, and the next one runs; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch

from benchmarks.environment import environment
from benchmarks.result_file import ResultFile, unused_path
from pmf.commands import run_command

HERE = Path(__file__).parent
CPU_RUNS = {
    "step": ["bench_step.py", "--preset", "cpu"],
    "methods": ["bench_methods.py"],
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


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """One benchmark: how it ended and what it measured until then; what it prints goes through.

    Returns:
        ``status`` (``ok``, ``failed`` or ``needs PACKAGE``), its JSON as ``result`` if it wrote any, and for a failure
        the last lines that it printed on stderr.
    """
    script = HERE / arguments[0]  # or any other, by its absolute path
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, str(script), *arguments[1:], "--json", str(output)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
            printed: list[str] = []
            for line in process.stderr or ():
                print(line, end="", file=sys.stderr, flush=True)
                printed = [*printed[-39:], line.rstrip("\n")]
        found: dict[str, Any] = {"status": "ok"}
        if process.returncode:
            missing = re.match(r"ModuleNotFoundError: No module named '(\w+)", printed[-1]) if printed else None
            found = {"status": f"needs {missing[1]}" if missing else "failed", "exit_status": process.returncode}
            found["stderr"] = printed
        if output.exists():
            found["result"] = json.loads(output.read_text())
        return found


def figures(name: str, result: Mapping[str, Any]) -> list[tuple[str, str, float]]:
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
    """Run, write after each, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the result file")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not run_benchmarks(GPU_RUNS if device == "cuda" else CPU_RUNS, device, arguments.output):
        sys.exit(1)


def run_benchmarks(runs: Mapping[str, Sequence[str]], device: str, folder: Path) -> bool:
    """Run and record all; whether none failed and nothing was missing.

    Raises:
        UserError: the folder cannot be written to.
    """
    head = environment(device)
    file = ResultFile(unused_path(folder, str(head["date"]), str(head["hardware"])), head)
    benchmarks: dict[str, Any] = {name: {"status": "not started"} for name in runs}
    file.add(benchmarks=benchmarks)
    for name, command in runs.items():
        benchmarks[name] = {"status": "running"}
        file.write()
        benchmarks[name] = run(command)
        file.write()
    print(f"\n{head['hardware']}, {head['date']}, torch {torch.__version__}")
    print("| benchmark | what | figure |\n|---|---|---|")
    for name, found in benchmarks.items():
        for benchmark, what, figure in figures(name, found.get("result", {})):
            print(f"| {benchmark} | {what} | {figure:.3g} |")
        if found["status"] != "ok":
            print(f"| {name} | {found['status']} | |")
    print(f"\n{file.path}")
    return all(found["status"] == "ok" for found in benchmarks.values())


if __name__ == "__main__":
    run_command(main)
