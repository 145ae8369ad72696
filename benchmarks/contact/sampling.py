"""Where the time of sampling goes, stage by stage, and what share of the network's rate the whole reaches."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contact.setting import NUM_CLASSES, Report, Setting
from benchmarks.environment import synchronize
from benchmarks.sampling_pipeline import pipeline_seconds
from pmf.config.sections import SamplingConfig
from pmf.data.codec import to_uint8
from pmf.distributed.world import set_float32_precision
from pmf.flow.parameterization import ImagePrediction
from pmf.flow.sampler import generate
from pmf.generation.noise import NoiseOptions, image_noise
from pmf.generation.pictures import save_png
from pmf.net.base import BaseNetwork

IMAGES = 64
PNG_REPEATS = 1  # some 3 ms an image
WHOLE = {"network, TF32": "float32", "network, bf16": "bf16"}
"""Of networks, what ``sampling.precision`` is called with which all of sampling is measured too."""


def measure(setting: Setting, report: Report) -> None:
    """Milliseconds of each stage for one batch, one after the other; medians, host included.

    ``share_of_network``: images/s of a whole folder of PNGs over images/s of the network alone; 0.9 is the goal.
    """
    batch, side, device = setting.micro_batch(IMAGES), setting.image_size, setting.device
    report(batch=batch)
    labels = torch.arange(batch, device=device) % NUM_CLASSES
    stages: dict[str, float] = {}
    shares: dict[str, float] = {}
    rates: dict[str, float] = {}

    def timed(stage: str, function: Callable[[], Tensor], repeats: int = setting.sizes.repeats) -> Tensor:
        result, seconds = function(), []
        for _ in range(repeats):
            synchronize(device)
            started = time.perf_counter()
            result = function()
            synchronize(device)
            seconds.append(time.perf_counter() - started)
        stages[stage] = 1e3 * statistics.median(seconds)
        report(ms=stages, images_per_second={name: 1e3 * batch / value for name, value in stages.items()})
        return result

    noise = timed("noise", lambda: image_noise(NoiseOptions(seed=0, shape=(3, side, side), scale=1.0), range(batch)))
    on_device = timed("copy to device", lambda: noise.to(device))
    images = noise
    for name, tf32, precision, compiled in (
        ("network, float32", False, None, False),
        ("network, TF32", True, None, False),  # what sampling does by default
        ("network, bf16", True, torch.bfloat16, False),
        ("network, bf16 compiled", True, torch.bfloat16, True),
    ):
        if compiled and not setting.on_gpu:
            continue
        set_float32_precision(tf32=tf32)
        network = setting.network(inference=True).eval()
        if compiled:
            network.compile_blocks()
        images = timed(name, lambda n=network, p=precision: sample(n, on_device, labels, p))  # type: ignore[misc]
        if name in WHOLE:
            seconds = pipeline_seconds(
                network,
                image_size=side,
                num_classes=NUM_CLASSES,
                batch_size=batch,
                precision=WHOLE[name],
                device=device,
                parent=setting.scratch,
            )
            shares[name] = stages[name] / (1e3 * seconds)
            rates[name] = batch / seconds
            report(share_of_network=shares, pngs_per_second=rates)
    pixels = timed("to bytes", lambda: to_uint8(images))
    host = timed("copy to host", lambda: pixels.cpu())
    with tempfile.TemporaryDirectory(dir=setting.scratch) as folder:
        timed("PNG, one thread", lambda: write(host, Path(folder)), PNG_REPEATS)


def sample(network: BaseNetwork, noise: Tensor, labels: Tensor, precision: torch.dtype | None) -> Tensor:
    """One step of the sampler, with the defaults of ``sampling``; ``precision`` of the products, None: float32."""
    settings = SamplingConfig()
    with torch.autocast(noise.device.type, precision, enabled=precision is not None):
        return generate(
            network, ImagePrediction(), noise, labels, omega=settings.omega, interval=settings.interval
        ).float()


def write(images: Tensor, folder: Path) -> Tensor:
    """As PNGs."""
    for index, image in enumerate(images):
        save_png(image, folder / f"{index}.png")
    return images
