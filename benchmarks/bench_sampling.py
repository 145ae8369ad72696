"""Images per second of one-step generation, and where the time goes: python benchmarks/bench_sampling.py [--json OUT]

Stages of the same batch are timed one after the other, each repeat all of them: noise (one generator an image, on the
CPU), the network as it is and with compiled blocks, and writing PNGs. Weights are random: they do not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch import Tensor

from benchmarks.environment import environment, synchronize
from benchmarks.result_file import ResultFile
from pmf.commands import run_command
from pmf.data.codec import to_uint8
from pmf.flow.parameterization import ImagePrediction
from pmf.flow.sampler import generate
from pmf.generation.pictures import save_png
from pmf.generation.plan import image_noise
from pmf.net.sizes import SIZES, create_network

NUM_CLASSES = 1000


def measure(
    model: str, image_size: int, batch_size: int, repeats: int, device: str, record: ResultFile
) -> dict[str, float]:
    """Images per second of each stage for one batch, after one repeat to warm up; recorded after each repeat."""
    networks = {}
    for name in ("network", "network, compiled"):
        networks[name] = create_network(model, image_size=image_size, num_classes=NUM_CLASSES, inference=True)
        networks[name].to(device).eval()
    networks["network, compiled"].compile_blocks()
    labels = torch.arange(batch_size, device=device) % NUM_CLASSES
    seconds: dict[str, list[float]] = {}

    def timed(stage: str, function: Callable[[], Tensor]) -> Tensor:
        synchronize(device)
        started = time.perf_counter()
        result = function()
        synchronize(device)
        seconds.setdefault(stage, []).append(time.perf_counter() - started)
        return result

    for repeat in range(repeats + 1):
        indices = range(repeat * batch_size, (repeat + 1) * batch_size)
        noise = timed("noise", lambda i=indices: image_noise(0, i, (3, image_size, image_size), 1.0).to(device))  # type: ignore[misc]
        for name, network in networks.items():
            images = timed(
                name,
                lambda n=network, z=noise: generate(  # type: ignore[misc]
                    n, ImagePrediction(), z, labels, omega=8.5, interval=(0.1, 0.7)
                ),
            )
        timed("uint8 and PNG", lambda x=images: write_pngs(to_uint8(x)))  # type: ignore[misc]
        if repeat:
            measured = {stage: values[1:] for stage, values in seconds.items()}
            rates = {stage: batch_size / statistics.median(values) for stage, values in measured.items()}
            record.add(seconds=measured, images_per_second=rates)
    return rates


def write_pngs(images: Tensor) -> Tensor:
    """Into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):
            save_png(image, Path(folder) / f"{index}.png")
    return images


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="pmf_b_16")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = {"model": arguments.model, "image_size": arguments.image_size, "batch_size": arguments.batch_size}
    record = ResultFile(arguments.json, {**environment(device), **settings})
    rates = measure(arguments.model, arguments.image_size, arguments.batch_size, arguments.repeats, device, record)
    print(f"{'':20s}{'images/s':>10s}")
    for stage, rate in rates.items():
        print(f"{stage:20s}{rate:10.2f}")


if __name__ == "__main__":
    run_command(main)
