"""From moments to the network's space and to bytes, by the numbers of diffusers itself."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pmf.data import autoencoder as autoencoders
from pmf.data import latent_codec
from pmf.data.autoencoder import autoencoder_sha256, decode_latents, load_autoencoder
from pmf.data.codec import create_codec, to_unit_range
from pmf.data.options import LATENT_NORMALIZATIONS
from pmf.data.source import create_source
from pmf.randomness import Stream, normal_like, torch_generator
from tests.latents import latent_config, write_autoencoder

CPU = torch.device("cpu")


def noise_of(step: int) -> torch.Generator:
    return torch_generator(Stream.ENCODING, 0, step, 0)


def moments_of(folder, autoencoder, count: int) -> Tensor:
    source = create_source(latent_config(folder, autoencoder), 0)
    return torch.from_numpy(np.stack([sample.image for sample in source.samples(np.arange(count))]))


@pytest.mark.parametrize("name", ["meanflow", "imf"])
def test_encoding_draws_and_normalises(name, encoded, autoencoder):
    codec = create_codec(latent_config(encoded(), autoencoder, latent_normalization=name))
    moments = moments_of(encoded(), autoencoder, 20)
    z = codec.encode(moments, noise_of(3))
    assert (codec.shape, codec.image_shape, z.dtype) == ((4, 4, 4), (3, 32, 32), torch.float32)
    mean, deviation = moments.double().chunk(2, 1)
    latents = mean + deviation * normal_like(mean.float(), noise_of(3)).double()
    if name == "meanflow":
        wanted = latents * 0.18215
    else:
        shift = torch.tensor([0.86488, -0.27787343, 0.21616915, 0.3738409], dtype=torch.float64).view(4, 1, 1)
        scale = torch.tensor([4.85503674, 5.31922414, 3.93725398, 3.9870003], dtype=torch.float64).view(4, 1, 1)
        wanted = (latents - shift) / scale
    # A float32 sum, product and quotient: a few times 6e-8 of values up to about 10.
    torch.testing.assert_close(z.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(z, codec.encode(moments, noise_of(3)))
    assert not torch.equal(z, codec.encode(moments, noise_of(4)))


def test_the_draws_have_the_moments_of_diffusers_distribution(encoded, autoencoder, jpegs):
    """Of the first image, against the distribution that the autoencoder gives in float64."""
    exact = copy.deepcopy(load_autoencoder(str(autoencoder), CPU)).double()
    source = create_source(latent_config(jpegs, autoencoder, kind="imagefolder"), 0)
    (image,) = source.samples(np.array([0]))
    with torch.no_grad():
        found = exact.encode(to_unit_range(torch.from_numpy(image.image))[None].double()).latent_dist
    codec = create_codec(latent_config(encoded(), autoencoder))
    count = 4000
    draws = codec.encode(moments_of(encoded(), autoencoder, 1).expand(count, -1, -1, -1), noise_of(0)).double()
    latents = draws / 0.18215
    # Five standard errors of a mean, and of a deviation, of so many normals: 64 values each.
    assert ((latents.mean(0) - found.mean[0]).abs() < 5 * found.std[0] / count**0.5).all()
    assert ((latents.std(0) / found.std[0] - 1).abs() < 5 / (2 * count) ** 0.5).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float16", 2e-3)])
def test_stored_moments_are_those_of_diffusers(dtype, tolerance, encoded, autoencoder, jpegs):
    """Mean and deviation in float64, of images in several classes; also the mirrored images' own.

    float32: sums of some hundred products of 6e-8 each, layer upon layer; float16: half of 2^-10 of values up to 4.
    """
    exact = copy.deepcopy(load_autoencoder(str(autoencoder), CPU)).double()
    chosen = np.array([0, 23, 24, 120, 199])
    pictures = create_source(latent_config(jpegs, autoencoder, kind="imagefolder"), 0)
    source = create_source(latent_config(encoded(dtype), autoencoder, horizontal_flip=True), 0)
    for picture, sample in zip(pictures.samples(chosen), source.samples(chosen)):
        assert sample.label == picture.label
        assert sample.image.dtype == np.dtype(dtype)
        for pixels, moments in ((picture.image, sample.image), (picture.flipped().copy(), sample.flipped())):
            with torch.no_grad():
                found = exact.encode((torch.from_numpy(pixels).double() / 255 - 0.5)[None] / 0.5).latent_dist
            wanted = torch.cat([found.mean, found.std], 1)[0]
            stored = torch.from_numpy(moments.astype(np.float64))
            torch.testing.assert_close(stored, wanted, rtol=tolerance, atol=tolerance)
        # The encoder is no mirror-symmetric function, so to flip moments would be another thing.
        assert np.abs(sample.image[:, :, ::-1] - sample.flipped()).max() > 0.05


@pytest.mark.parametrize("name", ["meanflow", "imf"])
def test_decoding_undoes_the_normalisation(name, autoencoder, encoded):
    codec = create_codec(latent_config(encoded(), autoencoder, latent_normalization=name))
    moments = moments_of(encoded(), autoencoder, 6)
    z = codec.encode(moments, noise_of(0))
    latents = moments[:, :4] + moments[:, 4:] * normal_like(moments[:, :4], noise_of(0))
    with torch.no_grad():
        decoded = load_autoencoder(str(autoencoder), CPU).decode(latents).sample
    wanted = ((decoded + 1) * 127.5).clamp(0, 255)
    found = codec.decode(z)
    assert (found.dtype, found.shape) == (torch.uint8, (6, 3, 32, 32))
    # Rounded to bytes; where normalising moves a value by 1e-5 or so it may fall on the other side.
    assert float((found - wanted).abs().max()) < 0.5 + 1e-2
    assert float(found.float().std()) > 40  # pictures, and not one colour


def test_a_few_images_are_decoded_at_a_time(autoencoder, encoded, monkeypatch):
    codec = create_codec(latent_config(encoded(), autoencoder))
    z = torch.randn(11, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(z)
    sizes = []

    def decode(loaded: object, latents: Tensor) -> Tensor:
        sizes.append(len(latents))
        return decode_latents(loaded, latents)

    monkeypatch.setattr(latent_codec, "decode_latents", decode)
    monkeypatch.setattr(latent_codec, "DECODED_PIXELS", 4 * 32**2 + 5)
    assert int((codec.decode(z).int() - whole.int()).abs().max()) <= 1  # other batches may round the other way
    assert sizes == [4, 4, 3]
    monkeypatch.setattr(latent_codec, "DECODED_PIXELS", 1)
    codec.decode(z[:2])
    assert sizes[3:] == [1, 1]


def test_decoding_heeds_no_autocast_and_keeps_no_graph(autoencoder, encoded):
    codec = create_codec(latent_config(encoded(), autoencoder))
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.decode(z), whole)
    loaded = load_autoencoder(str(autoencoder), CPU)
    assert not decode_latents(loaded, z.requires_grad_()).requires_grad
    assert not loaded.training


class Copies(TorchDispatchMode):
    """Counts copies from one device to another; of ordinary memory to a GPU, they make the host wait."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("_to_copy", "copy_"):
            self.count += args[0].device != (args[1] if func.overloadpacket.__name__ == "copy_" else found).device
        return found


@pytest.mark.parametrize("name", ["meanflow", "imf"])
def test_no_constants_are_copied_to_the_device(name, autoencoder, encoded, monkeypatch):
    monkeypatch.setattr(latent_codec, "decode_latents", lambda _autoencoder, latents: latents)
    codec = create_codec(latent_config(encoded(), autoencoder, latent_normalization=name))
    there = torch.empty(2, 8, 4, 4, device="meta")
    with Copies() as copies:
        z = codec.encode(there, noise_of(0))
        codec.decode(z)
    assert copies.count == 0
    with Copies() as copies:
        torch.zeros(1).to("meta")
    assert copies.count == 1


def test_an_autoencoder_that_is_only_hashed_is_not_kept(tmp_path):
    name = str(write_autoencoder(tmp_path / "autoencoder", seed=1))
    found = autoencoder_sha256(name)
    assert not [key for key in autoencoders._LOADED if key[0] == name]
    load_autoencoder(name, CPU)
    autoencoder_sha256.cache_clear()
    assert autoencoder_sha256(name) == found


def test_the_record_names_autoencoder_and_normalisation(autoencoder, encoded):
    codec = create_codec(latent_config(encoded(), autoencoder, latent_normalization="imf"))
    assert codec.record == {
        "autoencoder": str(autoencoder),
        "autoencoder_sha256": autoencoder_sha256(str(autoencoder)),
        "latent_normalization": "imf",
        "rounding": "half to even of (x + 1) / 2 * 255, clipped to 0 ... 255",
    }


def test_examples_can_be_encoded_and_pixels_cannot(autoencoder, encoded):
    codec = create_codec(latent_config(encoded(), autoencoder))
    assert codec.encode(codec.example(3), noise_of(0)).shape == (3, 4, 4, 4)
    for batch in (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 4, 4, 4)):
        with pytest.raises(TypeError, match=r"holds no moments of latents \(4, 4, 4\)"):
            codec.encode(batch, noise_of(0))


def test_a_normalisation_is_a_row(autoencoder, encoded, monkeypatch):
    row = replace(LATENT_NORMALIZATIONS["meanflow"], mean=(1.0,) * 4, deviation=(2.0,) * 4)
    monkeypatch.setitem(LATENT_NORMALIZATIONS, "mine", row)
    codec = create_codec(latent_config(encoded(), autoencoder, latent_normalization="mine"))
    moments = torch.cat([torch.full((1, 4, 4, 4), 7.0), torch.zeros(1, 4, 4, 4)], 1)
    assert torch.equal(codec.encode(moments, noise_of(0)), torch.full((1, 4, 4, 4), 3.0))
