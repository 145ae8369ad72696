"""Noise ahead, images in flight, PNGs behind: the same bytes in any case, and an end without loose threads."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import io
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pmf.config.yaml_file import load_config
from pmf.data.codec import CACHED_VALUES, PixelCodec, to_uint8
from pmf.data.options import DataConfig
from pmf.distributed.world import ALONE
from pmf.errors import NotFiniteError, UserError
from pmf.generation.folder import write_image_folder
from pmf.generation.images import ImageMaker, inference_network, own_batches
from pmf.generation.noise import BATCHES_AHEAD, NoiseOptions, image_noise, noise_ahead
from pmf.generation.pictures import png_bytes
from pmf.generation.plan import plan_samples
from tests.launch import ROOT, launch

DIGITS = ROOT / "configs" / "digits.yaml"
COUNT = 23


@pytest.fixture
def make(weights):
    """An image maker and a plan with these sampling options, five images a batch."""

    def made(*options: str, num_images: int = COUNT, broken_class: int | None = None):
        config = load_config(DIGITS, ["sampling.batch_size=5", *options])
        tensors = load_file(weights)
        if broken_class is not None:
            # Finite values whose sum is not, for this class alone.
            tensors["label_embedding.weight"][broken_class] = 3e38
            tensors["class_tokens"].view(-1)[: tensors["class_tokens"].shape[-1]] = 3e38
        network = inference_network(config, tensors, torch.device("cpu"), "test")
        maker = ImageMaker(network, config, torch.device("cpu"))
        return maker, plan_samples(config, num_images=num_images, seed=3, weights="w")

    return made


@pytest.fixture
def threads_end():
    """No thread of the test outlives it."""
    before = threading.active_count()
    yield
    assert threading.active_count() == before, threading.enumerate()


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


@pytest.mark.parametrize("kind", ["ours", "official"])
@pytest.mark.parametrize(("shape", "scale"), [((3, 8, 8), 1.0), ((1, 5, 7), 0.7), ((3, 256, 256), 2.0)])
def test_noise_from_threads_is_the_literal_noise_to_the_bit(kind, shape, scale):
    batches = [range(0, 3), range(3, 3), range(3, 5), range(90, 91)]
    options = NoiseOptions(seed=11, shape=shape, scale=scale, kind=kind)
    with ThreadPoolExecutor(2) as pool:
        drawn = list(noise_ahead(options, batches, pool, pinned=False))
    assert [len(noise) for noise in drawn] == [3, 0, 2, 1]
    for index, row in zip((0, 1, 2, 3, 4, 90), torch.cat(drawn), strict=True):
        if kind == "ours":
            normal = torch.from_numpy(np.random.default_rng((5, 11, index)).standard_normal(shape, dtype=np.float32))
        else:
            normal = torch.randn(shape, generator=torch.Generator().manual_seed(index ^ 11))
        assert torch.equal(row, normal * scale)
        assert torch.equal(row, image_noise(options, [index])[0])


def test_only_a_few_batches_of_noise_are_drawn_ahead():
    begun: list[int] = []

    def batches():
        for index in range(100):
            begun.append(index)
            yield [index]

    options = NoiseOptions(seed=0, shape=(1, 2, 2), scale=1.0)
    with ThreadPoolExecutor(1) as pool:
        for number, _ in enumerate(noise_ahead(options, batches(), pool, pinned=False), 1):
            assert len(begun) == min(number + BATCHES_AHEAD, 100)


@pytest.mark.usefixtures("threads_end")
@pytest.mark.parametrize("in_flight", [0, 1, 3])
@pytest.mark.parametrize("on_host", [False, True])
def test_images_in_flight_are_those_made_one_by_one(make, in_flight, on_host):
    maker, plan = make()
    maker.in_flight = in_flight
    own = [*own_batches(COUNT, 5, ALONE), range(0)]
    own[1] = range(0)  # as where a folder has them already
    batches = list(maker.batches(plan, ALONE, own, on_host=on_host))
    assert [batch.indices for batch in batches] == [list(indices) for indices in own]
    assert batches[1].images.shape == batches[-1].images.shape == (0, 1, 8, 8)
    for batch in batches:
        if batch.indices:
            assert torch.equal(batch.images, maker.make(plan, batch.indices))


@pytest.mark.usefixtures("threads_end")
@pytest.mark.parametrize("in_flight", [0, 1])
def test_nothing_of_a_batch_that_is_not_finite_is_written(make, tmp_path, in_flight):
    maker, plan = make(broken_class=9)
    plan = dataclasses.replace(plan, labels=(*range(8), *[0] * 8, 9))  # image 16, of the fourth batch
    maker.in_flight = in_flight
    with pytest.raises(NotFiniteError, match=r"^image 16 \(class 9\) of w: 64 of its 64 values are not finite"):
        list(write_image_folder(maker, plan, tmp_path / "images", ALONE))
    assert set(hashes(tmp_path / "images")) == {f"{index:06d}.png" for index in range(15)}
    assert not (tmp_path / "images" / "labels.csv").exists()


@pytest.mark.usefixtures("threads_end")
def test_what_a_full_disk_or_an_interruption_leaves_is_completed_to_the_same_bytes(make, tmp_path):
    maker, plan = make()
    list(write_image_folder(maker, plan, tmp_path / "whole", ALONE))
    whole = hashes(tmp_path / "whole")

    full = tmp_path / "full"
    full.mkdir()
    no_room = full / f".000007.png.{os.getpid()}"
    no_room.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"000007.png: cannot be written \(No space left on device\); make room"):
        list(write_image_folder(maker, plan, full, ALONE))
    kept = hashes(full)
    assert {f"{index:06d}.png" for index in range(5)} <= set(kept) < set(whole)
    assert kept.items() <= whole.items()
    no_room.unlink()

    interrupted = write_image_folder(maker, plan, tmp_path / "interrupted", ALONE)
    next(interrupted)
    with pytest.raises(KeyboardInterrupt):
        interrupted.throw(KeyboardInterrupt)
    assert len(hashes(tmp_path / "interrupted")) < len(whole)

    for folder in (full, tmp_path / "interrupted"):
        assert list(write_image_folder(maker, plan, folder, ALONE)) == [5, 5, 5, 5, 3]
        assert hashes(folder) == whole


@pytest.mark.usefixtures("threads_end")
def test_what_goes_wrong_in_a_thread_that_draws_noise_ends_the_sampling(make, tmp_path):
    maker, plan = make()
    with pytest.raises(ValueError, match="non-negative"):
        list(write_image_folder(maker, dataclasses.replace(plan, seed=-1), tmp_path / "images", ALONE))


def test_bf16_is_the_networks_autocast_and_close_to_float32(make):
    maker, plan = make("sampling.precision=bf16")
    settings = {name: plan.settings[name] for name in ("omega", "interval", "num_steps", "sampler")}
    noise = image_noise(NoiseOptions(seed=3, shape=(1, 8, 8), scale=1.0), range(5))
    with torch.autocast("cpu", torch.bfloat16):
        z = maker._objective.generate(maker.network, noise, torch.arange(5), **settings)
    images = maker.make(plan, range(5))
    assert torch.equal(images, to_uint8(z))
    exact, plain = make()
    assert plan.record() == {**plain.record(), "precision": "bf16"}
    difference = (images.int() - exact.make(plain, range(5)).int()).abs()
    # bf16 has 8 bits: products are off by 2^-9, some tens of them by a few grey levels; float32 by none.
    assert 0 < difference.max() <= 16
    assert difference.float().mean() < 2


def test_a_png_holds_the_pixels_whatever_they_are():
    generator = np.random.default_rng(0)
    steps = np.add.outer(np.arange(64), 3 * np.arange(64))
    for channels, (height, width) in itertools.product((1, 3), ((1, 1), (1, 9), (9, 1), (31, 64), (64, 33))):
        shape = (channels, height, width)
        for image in (
            generator.integers(0, 256, shape, np.uint8),
            np.full(shape, 255, np.uint8),
            np.broadcast_to(steps[:height, :width].astype(np.uint8), shape),
            np.where(generator.random(shape) < 0.5, 0, 255).astype(np.uint8),
        ):
            data = png_bytes(image)
            Image.open(io.BytesIO(data)).verify()  # checksums
            decoded = Image.open(io.BytesIO(data))
            assert decoded.mode == ("L" if channels == 1 else "RGB")
            pixels = np.asarray(decoded).reshape(height, width, channels)
            np.testing.assert_array_equal(pixels.transpose(2, 0, 1), image)


@pytest.mark.parametrize("side", [8, 300])
def test_images_become_bytes_part_by_part_as_they_do_at_once(side):
    codec = PixelCodec(DataConfig(kind="synthetic", image_size=side))
    rows = CACHED_VALUES // (3 * side * side) + 2
    z = 1.5 * torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.decode(z), to_uint8(z))


FAULTS = """
import resource, sys, torch
from pmf.generation.beside import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
counts = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.full((50 * 2**20,), 1, dtype=torch.uint8)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(counts[2:]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not GNU's")
def test_freed_memory_is_not_made_anew():
    kept, given_back = (int(launch("-c", FAULTS, how).stdout) for how in ("keep", "plain"))
    # Page faults of seven tensors of 50 MiB, after two that the process grows with: 0, or 12,800 where it grows once
    # more, and 89,600; fewer with large pages.
    assert kept < given_back / 3
