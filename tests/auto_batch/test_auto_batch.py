"""The size that auto_batch.py finds: which sizes it tries, what it writes, and that all ranks agree."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pmf.auto_batch.search import Measurement, Trial, best_size, largest_that_fits, verified_size
from pmf.distributed.batching import divisors
from tests.launch import NETWORKS, ROOT, run_command
from tests.runs import METHODS

# Each trial is a process that imports torch's stack: half a minute in all, more where others compute.
PATIENCE = 600


def device(limit: int, rates: dict[int, float] | None = None) -> tuple[Trial, list[int]]:
    """A device that sizes fit up to a limit, and the sizes that it was asked for."""
    asked: list[int] = []

    def attempt(size: int) -> Measurement:
        asked.append(size)
        return Measurement(size=size, peak=size, images_per_second=(rates or {}).get(size, 1.0), fits=size <= limit)

    return attempt, asked


@pytest.mark.parametrize("total", [1, 7, 96, 1024])
def test_the_largest_size_that_fits_is_found_from_every_start(total):
    sizes = divisors(total)
    for first in sizes:
        for limit in [0, *sizes]:
            attempt, asked = device(limit)
            found = largest_that_fits(sizes, first, attempt)
            assert found == (limit or None)
            assert len(asked) == len(set(asked)), "no size is tried twice"
            assert len(asked) <= 2 * len(sizes).bit_length() + 1


def test_a_right_estimate_needs_two_trials():
    attempt, asked = device(32)
    assert largest_that_fits(divisors(1024), 32, attempt) == 32
    assert asked == [32, 64]


def test_the_smallest_size_near_the_best_speed_wins():
    rates = {1: 10.0, 2: 50.0, 4: 97.9, 8: 98.1, 16: 100.0, 32: 99.0}
    attempt, asked = device(32, rates)
    assert best_size(divisors(64), 32, attempt) == 8
    assert asked == [32, 16, 8, 4], "sizes below the first that is too slow are not tried"


def test_a_size_that_fails_the_second_time_is_not_the_answer():
    attempt, asked = device(8)
    assert verified_size(divisors(64), 32, attempt) == 8
    assert asked == [32, 16, 8]
    assert verified_size(divisors(64), 32, device(0)[0]) is None


def two_images_on_each_of(ranks: int) -> list[str]:
    """So that few sizes are to be tried."""
    return [f"training.global_batch_size={2 * ranks}", "training.num_threads=1"]


def copy_of_digits(folder: Path, config: str = "digits") -> Path:
    return Path(shutil.copy(ROOT / "configs" / f"{config}.yaml", folder / "copy.yaml"))


@pytest.mark.parametrize("config", [pytest.param(m, marks=[pytest.mark.slow] * (m != "digits")) for m in METHODS])
def test_a_dry_run_estimates_for_a_device_that_is_not_here(tmp_path, config):
    path = copy_of_digits(tmp_path, config)
    before = path.read_bytes()
    result = run_command(
        "auto_batch.py",
        "--config",
        str(path),
        "--dry-run",
        "--device-memory",
        "40GiB",
        f"model.name={NETWORKS[config]}",
        timeout=PATIENCE,
        CUDA_VISIBLE_DEVICES="",
    )
    assert result.returncode == 0, result.stderr
    assert "+  micro_batch_size: 64" in result.stdout.splitlines()
    assert "This is an estimate" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.endswith(" yes")]
    assert [int(row[0]) for row in rows] == divisors(64)
    peaks = [float(row[1]) for row in rows]
    assert peaks == sorted(peaks)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_real_search_changes_the_target_number_alone(tmp_path):
    path = copy_of_digits(tmp_path)
    before = path.read_text()
    result = run_command(
        "auto_batch.py", "--config", str(path), *two_images_on_each_of(1), timeout=PATIENCE, CUDA_VISIBLE_DEVICES=""
    )
    assert result.returncode == 0, result.stderr
    note = json.loads((tmp_path / "copy.yaml.auto_batch.json").read_text())
    (chosen,) = {size for size in (1, 2) if f"micro_batch_size: {size}\n" in path.read_text()}
    wanted = f"  global_batch_size: 2\n  micro_batch_size: {chosen}\n"
    assert path.read_text() == before.replace("  global_batch_size: 64\n", wanted)
    assert note["how"] == "measured"
    assert note["config_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {"torch", "hardware", "processes"} <= note.keys()
    (backup,) = tmp_path.glob("*.bak")
    assert backup.read_text() == before
    rates = {row["size"]: row["images_per_second"] for row in note["sizes"]}
    assert all(rate > 0 for rate in rates.values())
    assert all(row["fits"] and row["peak"] > 2**20 for row in note["sizes"])


@pytest.mark.slow
def test_one_starved_rank_of_two_decides_for_both(tmp_path):
    path = copy_of_digits(tmp_path)
    result = run_command(
        "tests/starved_rank.py",
        str(path),
        *two_images_on_each_of(2),
        ranks=2,
        timeout=PATIENCE,
        CUDA_VISIBLE_DEVICES="",
        MOST_IMAGES="1",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {row["size"]: row for row in json.loads((tmp_path / "copy.yaml.auto_batch.json").read_text())["sizes"]}
    assert not rows[2]["fits"]
    assert rows[2]["peak"] is None
    assert "\n  micro_batch_size: 1\n" in path.read_text()
    assert rows[1]["fits"]


def test_advice_where_not_even_one_image_fits(tmp_path):
    path = copy_of_digits(tmp_path)
    result = run_command(
        "auto_batch.py", "--config", str(path), "--device-memory", "1MiB", timeout=PATIENCE, CUDA_VISIBLE_DEVICES=""
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "one image per process does not fit; try, in this order: training.compile=true, training.activation" in line
    assert list(tmp_path.iterdir()) == [path]
