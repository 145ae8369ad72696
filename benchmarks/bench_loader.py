"""Decoded images per second of the Parquet loader at 256 pixels, by number of workers."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

from benchmarks.environment import environment
from benchmarks.make_parquet import write_image_set
from benchmarks.result_file import ResultFile
from pmf.commands import run_command
from pmf.data.loader import create_loader
from pmf.data.options import DataConfig
from pmf.data.source import create_source

BATCH = 64


@dataclass(frozen=True)
class Measurement:
    """One pass over the set."""

    workers: int
    """0: in the main process."""
    first_batch_seconds: float
    """From asking for the loader's first batch to having it: worker start, imports, first row groups."""
    images_per_second: float
    """After the first batch."""
    images_per_second_per_worker: float


def measure(config: DataConfig, workers: int, steps: int) -> Measurement:
    """Time ``steps`` batches."""
    config = config.model_copy(update={"num_workers": workers})
    source = create_source(config, 0)
    begin = time.perf_counter()
    batches = iter(
        create_loader(
            source,
            config,
            seed=0,
            global_batch_size=BATCH,
            micro_batch_size=BATCH,
            rank=0,
            world_size=1,
            start_step=0,
            num_steps=steps,
        )
    )
    next(batches)
    first = time.perf_counter()
    images = sum(len(batch.labels) for batch in batches)
    rate = images / (time.perf_counter() - first)
    return Measurement(workers, first - begin, rate, rate / max(1, workers))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    record = ResultFile(arguments.json, {**environment(), "image_size": arguments.size})
    with tempfile.TemporaryDirectory() as folder:
        write_image_set(Path(folder), arguments.images)
        megabytes = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet")) / 1e6
        print(f"{arguments.images} images, {1e3 * megabytes / arguments.images:.0f} kB each")
        print(f"{'workers':>8} {'first batch s':>14} {'images/s':>10} {'per worker':>11}")
        config = DataConfig(kind="parquet", path=folder, image_size=arguments.size)
        results = []
        for workers in arguments.workers:
            result = measure(config, workers, arguments.images // BATCH)
            results.append(asdict(result))
            record.add(results=results)
            print(
                f"{workers:>8} {result.first_batch_seconds:>14.2f} {result.images_per_second:>10.1f} "
                f"{result.images_per_second_per_worker:>11.1f}"
            )


if __name__ == "__main__":
    run_command(main)
