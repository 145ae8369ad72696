"""Latents on a device: drawn without a wait; the tests' autoencoder gives what it gives in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from pmf.data.autoencoder import decode_latents, encode_moments, load_autoencoder
from pmf.data.codec import create_codec, to_unit_range
from pmf.data.options import LATENT_NORMALIZATIONS
from pmf.randomness import Stream, torch_generator
from tests.gpu.devices import DEVICES, GPU
from tests.latents import SIZE, latent_config, write_autoencoder


def noise() -> torch.Generator:
    return torch_generator(Stream.ENCODING, 0, 0, 0)


@pytest.fixture
def _exact_float32(monkeypatch):
    """Convolutions without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("normalization", LATENT_NORMALIZATIONS)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_encoding_does_not_wait_for_the_device(device, normalization, tmp_path):
    codec = create_codec(latent_config(tmp_path, tmp_path, latent_normalization=normalization))
    moments = torch.rand(6, 8, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    codec.encode(moments, noise())  # the first call of a process may set things up
    try:
        torch.cuda.set_sync_debug_mode("error")
        z = codec.encode(moments, noise())
        with pytest.raises(RuntimeError, match="synchroniz"):
            z.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert z.device.type == device
    # No noise where there is no deviation, so that what the CPU makes of the same moments is the same.
    moments[:, 4:] = 0
    # One float32 difference and quotient of values up to 8.
    torch.testing.assert_close(
        codec.encode(moments, noise()).cpu(), codec.encode(moments.cpu(), noise()), rtol=1e-6, atol=1e-6
    )


@pytest.mark.usefixtures("_exact_float32")
@pytest.mark.parametrize("device", DEVICES)
def test_the_autoencoder_encodes_and_decodes_as_in_float64(device, tmp_path):
    pytest.importorskip("diffusers")
    name = str(write_autoencoder(tmp_path / "autoencoder"))
    autoencoder = load_autoencoder(name, torch.device(device))
    exact = copy.deepcopy(autoencoder).cpu().double()
    generator = torch.Generator().manual_seed(0)
    images = to_unit_range(torch.randint(256, (4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8))
    with torch.no_grad():
        expected = exact.encode(images.double()).latent_dist
        moments = encode_moments(autoencoder, images.to(device)).cpu().double()
        latents = torch.randn(4, 4, SIZE // 8, SIZE // 8, generator=generator)
        pixels = exact.decode(latents.double()).sample
    # Sums of some hundred float32 products, 6e-8 each, layer upon layer; TF32, with 11 bits, would give about 1e-3.
    torch.testing.assert_close(moments, torch.cat([expected.mean, expected.std], dim=1), rtol=5e-5, atol=5e-5)
    found = decode_latents(autoencoder, latents.to(device)).cpu().double()
    torch.testing.assert_close(found, pixels, rtol=5e-5, atol=5e-5)
