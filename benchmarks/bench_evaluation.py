"""Images per second of features, and seconds of a Fréchet distance: python benchmarks/bench_evaluation.py [--json OUT]

Features: Inception with random weights (they do not change the time) on random images, with the sums for FID and the
Inception score; and the same sums alone. Distance: of two covariances of full rank, and of two of rank below their
dimension (fewer images than features). With --sqrtm also by scipy's matrix square root, as pytorch-fid does: minutes.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from benchmarks.environment import environment, synchronize
from benchmarks.result_file import ResultFile
from pmf.commands import run_command
from pmf.distributed.world import ALONE
from pmf.evaluation.extractors import Extractor, freeze
from pmf.evaluation.frechet import Gaussian, frechet_distance
from pmf.evaluation.inception import LAYERS, NAME, InceptionFeatures
from pmf.evaluation.inception_score import InceptionScoreSums
from pmf.evaluation.meter import FidelityMeter
from pmf.evaluation.moments import FeatureMoments
from pmf.generation.plan import ImageBatch

DIMENSION = 2048
NUM_CLASSES = 1008


class _RandomInception(FeatureExtractorInceptionV3):
    """As it is before its weights are loaded."""

    def load_state_dict(self, *arguments: object, **options: object) -> None:
        """Keep the random ones."""


def random_inception(device: str) -> Extractor:
    """Inception with random weights."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    weights = _RandomInception(NAME, list(LAYERS), empty).state_dict()
    return freeze(NAME, "random", InceptionFeatures(weights), torch.device(device))


def seconds_of(function: Callable[[], object], repeats: int, device: str) -> float:
    """Median after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def feature_rates(batch_size: int, image_size: int, repeats: int, device: str, record: ResultFile) -> dict[str, float]:
    """Images per second of the extractor with sums, and of the sums alone."""
    images = torch.randint(256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=device)
    indices = list(range(batch_size))
    meter = FidelityMeter(random_inception(device), (3, image_size, image_size), 50_000, ALONE)
    features = torch.rand(batch_size, DIMENSION, device=device)
    logits = torch.randn(batch_size, NUM_CLASSES, device=device)
    moments = FeatureMoments(DIMENSION, torch.device(device))
    score = InceptionScoreSums(50_000, NUM_CLASSES, torch.device(device))

    def sums() -> None:
        moments.update(features)
        score.update(logits, indices)

    rates: dict[str, float] = {}
    for name, call in {
        "inception and sums": lambda: meter.update(ImageBatch(images, indices)),
        "sums alone": sums,
    }.items():
        rates[name] = batch_size / seconds_of(call, repeats, device)
        record.add(images_per_second=rates)
    return rates


def distance_seconds(repeats: int, with_sqrtm: bool, record: ResultFile) -> dict[str, float]:
    """Seconds of a distance in 2,048 dimensions, on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def gaussian(num_images: int) -> Gaussian:
        features = torch.randn(num_images, DIMENSION, generator=generator, dtype=torch.float64)
        features *= torch.logspace(0, -2, DIMENSION, dtype=torch.float64)
        return Gaussian(features.mean(0), torch.cov(features.T))

    full, low = (gaussian(5000), gaussian(5000)), (gaussian(1000), gaussian(1000))
    seconds: dict[str, float] = {}

    def keep(name: str, value: float) -> None:
        seconds[name] = value
        record.add(milliseconds={name: 1000 * value for name, value in seconds.items()})

    keep("Frechet distance", seconds_of(lambda: frechet_distance(*full), repeats, "cpu"))
    keep("Frechet distance, both singular", seconds_of(lambda: frechet_distance(*low), repeats, "cpu"))
    if with_sqrtm:
        import scipy.linalg  # type: ignore[import-untyped]

        product = (full[0].covariance @ full[1].covariance).numpy()
        started = time.perf_counter()
        scipy.linalg.sqrtm(product)
        keep("scipy sqrtm", time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sqrtm", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = {"batch_size": arguments.batch_size, "image_size": arguments.image_size}
    record = ResultFile(arguments.json, {**environment(device), **settings})
    rates = feature_rates(arguments.batch_size, arguments.image_size, arguments.repeats, device, record)
    seconds = distance_seconds(arguments.repeats, arguments.sqrtm, record)
    for name, rate in rates.items():
        print(f"{name:34s}{rate:10.2f} images/s")
    for name, value in seconds.items():
        print(f"{name:34s}{value:10.2f} s")


if __name__ == "__main__":
    run_command(main)
