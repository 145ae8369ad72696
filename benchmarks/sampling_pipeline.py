"""The whole of sampling, from ready weights to a folder of PNGs, beside which the network alone can be set."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from pmf.config.yaml_file import config_from_plain
from pmf.distributed.world import ALONE
from pmf.generation.folder import write_image_folder
from pmf.generation.images import ImageMaker
from pmf.generation.plan import SamplingPlan, plan_samples
from pmf.net.base import BaseNetwork

BATCHES = {"cuda": 32, "cpu": 4}
"""Of one measurement, after one that fills the pipeline."""


def pipeline_seconds(
    network: BaseNetwork,
    *,
    image_size: int,
    num_classes: int,
    batch_size: int,
    precision: str,
    device: str,
    parent: Path | None = None,
) -> float:
    """Seconds of a batch in a folder of PNGs, noise and encoding included, with the defaults of ``sampling``.

    The clock starts with the second batch, and stops when the last PNG is written.

    Args:
        network: on ``device``, for images of ``image_size``.
        image_size: pixels of a side.
        num_classes: of the network.
        batch_size: images of a forward pass.
        precision: ``sampling.precision``.
        device: ``cuda`` or ``cpu``.
        parent: a folder for the images, which are removed; None: the system's temporary folder.
    """
    plain = {
        "data": {"kind": "synthetic", "image_size": image_size, "num_classes": num_classes},
        "training": {"max_steps": 1},
        "sampling": {"batch_size": batch_size, "precision": precision},
    }
    config = config_from_plain(plain, "benchmark")
    maker = ImageMaker(network, config, torch.device(device))
    plan: SamplingPlan = plan_samples(
        config, num_images=(BATCHES[device] + 1) * batch_size, seed=0, weights="the benchmark's"
    )
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        batches = write_image_folder(maker, plan, Path(folder) / "images", ALONE)
        next(batches)
        started = time.perf_counter()
        for _ in batches:
            pass
        return (time.perf_counter() - started) / BATCHES[device]
