"""Between what a data set holds, the network's space, and bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pmf.config.yaml_file import config_from_plain
from pmf.data.codec import create_codec
from pmf.data.options import SOURCES, DataConfig, DataKind
from pmf.data.source import Sample
from pmf.distributed.world import ALONE
from pmf.generation.images import ImageMaker
from pmf.generation.plan import plan_samples
from pmf.net.interface import HeadOutputs
from pmf.randomness import Stream, torch_generator
from tests.data.batches import BATCH, load


def noise_of(micro_batch: int) -> torch.Generator:
    return torch_generator(Stream.TRAINING_NOISE, 0, 0, micro_batch)


def test_every_byte_comes_back():
    codec = create_codec(DataConfig(kind="synthetic", image_size=16, channels=1))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    encoded = codec.encode(pixels, noise_of(0))
    assert (encoded.dtype, float(encoded.min()), float(encoded.max())) == (torch.float32, -1.0, 1.0)
    assert torch.equal(codec.decode(encoded), pixels)
    assert codec.shape == codec.image_shape == (1, 16, 16)


def test_pixels_are_bytes_and_nothing_else():
    codec = create_codec(DataConfig(kind="synthetic", image_size=4))
    with pytest.raises(TypeError, match=r"a batch of torch.float32 holds no pixels; name the codec of its data.kind"):
        codec.encode(torch.zeros(1, 3, 4, 4), noise_of(0))


class Moments:
    """48 samples that are means and deviations of one channel each, 2 x 4 x 4, exact in float32."""

    block_starts = None
    warnings = ()

    def __init__(self, data: DataConfig, seed: int) -> None:
        self.values = np.random.default_rng(seed).standard_normal((48, 2, 4, 4)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.values)

    def samples(self, indices: np.ndarray) -> Iterator[Sample]:
        return (Sample(self.values[index], 0) for index in indices)


class MomentsCodec:
    """A draw of the moments; decoded, each value is a grey pixel twice as wide and high."""

    shape = (1, 4, 4)
    image_shape = (1, 8, 8)

    def __init__(self, data: DataConfig) -> None:
        self.record = {"decoder": "twice"}

    def encode(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        mean, deviation = batch.chunk(2, dim=1)
        return mean + deviation * torch.randn(mean.shape, generator=generator)

    def decode(self, z: Tensor) -> Tensor:
        return (z + 7).round().to(torch.uint8).repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.fixture
def moments(monkeypatch) -> None:
    """A kind of data whose batches are moments."""
    monkeypatch.setitem(SOURCES, "moments", DataKind(source=Moments, codec=MomentsCodec))


def test_moments_pass_through_the_loader_to_a_codec_that_draws(moments):
    data = DataConfig(kind="moments", image_size=8, channels=1, num_classes=1, num_workers=0)
    codec = create_codec(data)
    batch = load(data, num_steps=1)[0]
    wanted = Moments(data, seed=3).values[batch.indices.numpy()]
    assert batch.images.dtype == torch.float32
    assert np.array_equal(batch.images.numpy(), wanted)
    drawn = codec.encode(batch.images, noise_of(0))
    assert drawn.shape == (BATCH, *codec.shape)
    assert torch.equal(drawn, codec.encode(batch.images, noise_of(0)))
    assert not torch.equal(drawn, codec.encode(batch.images, noise_of(1)))


def test_images_are_made_in_the_codecs_space_and_decoded_by_it(moments):
    data = {"kind": "moments", "image_size": 8, "channels": 1, "num_classes": 1}
    config = config_from_plain({"data": data, "training": {"max_steps": 1}}, "test")
    seen = []

    def network(z, conditions, heads="uv", tangent=None):
        seen.append(z.shape)
        return HeadOutputs(u=torch.ones_like(z), v=None)  # the network predicts an image: 1 everywhere

    maker = ImageMaker(network, config, ALONE.device)
    images = maker.make(plan_samples(config, num_images=3, seed=0, weights="w"), range(3))
    assert seen == [(3, 1, 4, 4)]
    assert maker.image_shape == (1, 8, 8)
    assert torch.equal(images, torch.full((3, 1, 8, 8), 8, dtype=torch.uint8))
