"""Sampling on a device: launched without a wait, the images of one batch after another, PNGs of those images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pmf.config.network import network_of
from pmf.config.yaml_file import config_from_plain
from pmf.distributed.world import ALONE, set_float32_precision
from pmf.generation.folder import write_image_folder
from pmf.generation.images import ImageMaker
from pmf.generation.noise import image_noise
from pmf.generation.plan import plan_samples
from tests.gpu.devices import DEVICES, GPU

COUNT = 23


def made(device: str, precision: str):
    config = config_from_plain(
        {
            "model": {"name": "pmf_tiny_16"},
            "data": {"kind": "synthetic", "image_size": 64, "num_classes": 10},
            "training": {"max_steps": 1},
            "sampling": {"batch_size": 5, "precision": precision},
        },
        "test",
    )
    generator = torch.Generator().manual_seed(0)
    network = network_of(config, inference=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    maker = ImageMaker(network.to(device).eval(), config, torch.device(device))
    return maker, plan_samples(config, num_images=COUNT, seed=1, weights="w")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_folder_holds_the_images_that_are_made_one_batch_at_a_time(device, precision, tmp_path):
    set_float32_precision(tf32=False)
    maker, plan = made(device, precision)
    assert maker.in_flight == (1 if device == "cuda" else 0)
    list(write_image_folder(maker, plan, tmp_path / "images", ALONE))
    for start in range(0, COUNT, 5):
        indices = range(start, min(start + 5, COUNT))
        for index, image in zip(indices, maker.make(plan, indices).cpu(), strict=True):
            pixels = np.asarray(Image.open(tmp_path / "images" / f"{index:06d}.png"))
            np.testing.assert_array_equal(pixels.transpose(2, 0, 1), image.numpy())


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_a_batch_is_launched_without_a_wait_for_the_device(device):
    maker, plan = made(device, "bf16")
    noise = image_noise(maker._noise_options(plan), range(5)).pin_memory()
    for _ in maker.batches(plan, ALONE, on_host=True):  # the first call of a process may set things up
        pass
    try:
        torch.cuda.set_sync_debug_mode("error")
        launched = maker._start(plan, range(5), noise, ALONE, on_host=True)
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=device).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    images = maker._finish(plan, launched, ALONE).images
    assert images.is_pinned()
    assert torch.equal(images, maker.make(plan, range(5)).cpu())


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_images_are_those_of_a_cpu_up_to_rounding(device):
    """Noise is the host's on both; float32 products in another order move a value by far less than a grey level."""
    set_float32_precision(tf32=False)
    (here, plan), (there, _) = made("cpu", "float32"), made(device, "float32")
    difference = (here.make(plan, range(5)).int() - there.make(plan, range(5)).cpu().int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01
