"""Images per second of one-step generation, and where the time goes: python benchmarks/bench_sampling.py [--json OUT]

Stages of the same batch are timed one after the other, each repeat all of them: noise (one generator an image, on the
CPU), the network as it is, in bf16 and with compiled blocks, and writing PNGs; then a whole folder of PNGs, in which
they overlap, and its share of what the network alone does. Weights are random: they do not change the time.
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
from benchmarks.sampling_pipeline import pipeline_seconds
from pmf.commands import run_command
from pmf.data.codec import to_uint8
from pmf.flow.parameterization import ImagePrediction
from pmf.flow.sampler import generate
from pmf.generation.noise import NoiseOptions, image_noise
from pmf.generation.pictures import save_png
from pmf.net.sizes import SIZES, create_network

NUM_CLASSES = 1000


def measure(
    model: str, image_size: int, batch_size: int, repeats: int, device: str, record: ResultFile
) -> dict[str, float]:
    """Images per second of each stage for one batch, after one repeat to warm up; recorded after each repeat."""
    made = [create_network(model, image_size=image_size, num_classes=NUM_CLASSES, inference=True) for _ in range(2)]
    plain, compiled = (network.to(device).eval() for network in made)
    compiled.compile_blocks()
    networks = {"network": (plain, False), "network, bf16": (plain, True), "network, compiled": (compiled, False)}
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
        options = NoiseOptions(seed=0, shape=(3, image_size, image_size), scale=1.0)
        noise = timed("noise", lambda o=options, i=indices: image_noise(o, i).to(device))  # type: ignore[misc]
        for name, (network, half) in networks.items():
            with torch.autocast(device, torch.bfloat16, enabled=half):
                images = timed(
                    name,
                    lambda n=network, z=noise: generate(  # type: ignore[misc]
                        n, ImagePrediction(), z, labels, omega=8.5, interval=(0.1, 0.7)
                    ),
                )
        timed("uint8 and PNG", lambda x=images: write_pngs(to_uint8(x)))  # type: ignore[misc]
        for precision in ("float32", "bf16"):
            whole = pipeline_seconds(
                plain,
                image_size=image_size,
                num_classes=NUM_CLASSES,
                batch_size=batch_size,
                precision=precision,
                device=device,
            )
            seconds.setdefault(f"all, {precision}", []).append(whole)
        if repeat:
            measured = {stage: values[1:] for stage, values in seconds.items()}
            rates = {stage: batch_size / statistics.median(values) for stage, values in measured.items()}
            shares = {
                precision: rates[f"all, {precision}"] / rates[network]
                for precision, network in (("float32", "network"), ("bf16", "network, bf16"))
            }
            record.add(seconds=measured, images_per_second=rates, share_of_network=shares)
    for precision, share in shares.items():
        print(f"a folder of PNGs in {precision}: {share:.2f} of the network alone")
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
