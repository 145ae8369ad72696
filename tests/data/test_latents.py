"""Moments as a data set: both layouts, the order of samples, mirrored images."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pmf.data import latents
from pmf.data.options import DataConfig, network_shape
from pmf.data.order import epoch_flips
from pmf.data.source import create_source, require_first_images
from tests.data.batches import BATCH, load
from tests.latents import latent_config, write_official


@pytest.fixture(scope="module")
def stored(encoded) -> dict[str, torch.Tensor]:
    """All tensors of the shards, one after the other, by safetensors' own reader."""
    shards = [load_file(file) for file in sorted(encoded().glob("*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def test_samples_are_the_rows_of_the_shards(encoded, autoencoder, stored, monkeypatch):
    monkeypatch.setattr(latents, "OPEN_SHARDS", 2)  # of nine
    source = create_source(latent_config(encoded(), autoencoder), 0)
    assert (len(source), source.warnings, source.block_starts) == (200, [], None)
    order = np.random.default_rng(0).permutation(200)
    for index, sample in zip(order, pickle.loads(pickle.dumps(source)).samples(order)):
        assert np.array_equal(sample.image, stored["moments"][index].numpy())
        assert sample.label == int(stored["labels"][index]) == index // 50


def test_shards_are_read_where_they_are_looked_at(encoded, autoencoder, tmp_path):
    """What changes in the file after it was opened is seen, so it was not read as a whole."""
    folder = shutil.copytree(encoded(), tmp_path / "latents")
    source = create_source(latent_config(folder, autoencoder), 0)
    (before,) = source.samples(np.array([0]))
    shard = folder / "latents-00000.safetensors"
    content = bytearray(shard.read_bytes())
    start = content.find(before.image.tobytes())
    with shard.open("r+b") as file:
        file.seek(start)
        file.write(bytes(before.image.nbytes))
    (after,) = source.samples(np.array([0]))
    assert before.image.any()
    assert not after.image.any()


def test_official_folders_are_the_same_data_set(encoded, autoencoder, tmp_path):
    write_official(tmp_path / "official", encoded())
    (tmp_path / "official" / "README.md").write_text("notes")
    config = latent_config(tmp_path / "official", autoencoder)
    assert create_source(config, 0).warnings == [f"{tmp_path}/official: left out are other files: 1 (first README.md)"]
    theirs = load(config, num_steps=9)
    for batch, own in zip(theirs, load(latent_config(encoded(), autoencoder), num_steps=9)):
        assert torch.equal(batch.images, own.images)
        assert torch.equal(batch.labels, own.labels)
        assert torch.equal(batch.indices, own.indices)


def test_a_damaged_official_file_is_replaced_like_a_damaged_image(encoded, autoencoder, tmp_path):
    write_official(tmp_path / "official", encoded())
    (tmp_path / "official" / "00000007.pt").write_bytes(b"PK\x03\x04 cut off")
    config = latent_config(tmp_path / "official", autoencoder, max_corrupt_fraction=0.01)
    found = load(config, num_steps=8)
    (corrupt,) = {str(image) for batch in found for image in batch.corrupt}
    assert corrupt.startswith(f"{tmp_path}/official/00000007.pt: this image cannot be decoded: its file is damaged")
    source = create_source(config, 0)
    (next_one,) = source.samples(np.array([8]))
    (place,) = [(batch, row) for batch in found for row in np.flatnonzero(batch.indices.numpy() == 7)]
    assert np.array_equal(place[0].images[place[1]].numpy(), next_one.image)
    require_first_images(source)


@pytest.mark.parametrize("changes", [{"num_workers": 2}, {"start_step": 3}, {"ranks": 2}])
def test_the_order_is_a_function_of_seed_and_step_alone(changes, encoded, autoencoder):
    """12 steps of 24 from 200: over the end of an epoch, mirrored with a coin for each image."""
    whole = load(latent_config(encoded(), autoencoder, horizontal_flip=True), num_steps=12)
    start, ranks = changes.pop("start_step", 0), changes.pop("ranks", 1)
    config = latent_config(encoded(), autoencoder, horizontal_flip=True, **changes)
    shares = [
        load(
            config,
            start_step=start,
            num_steps=12 - start,
            rank=rank,
            world_size=ranks,
            micro_batch_size=BATCH // ranks,
        )
        for rank in range(ranks)
    ]
    for batch, *parts in zip(whole[start:], *shares, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.indices, torch.cat([part.indices for part in parts]))


def test_a_flip_takes_the_mirrored_images_moments(encoded, autoencoder, stored):
    batches = load(latent_config(encoded("float16"), autoencoder, horizontal_flip=True), num_steps=16)
    assert batches[0].images.dtype == torch.float16
    flipped = 0
    for batch in batches:
        flips = epoch_flips(200, 3, batch.step // 8)[batch.indices.numpy()]
        for row, (index, flip) in enumerate(zip(batch.indices.tolist(), flips.tolist())):
            wanted = stored["mirrored" if flip else "moments"][index].half()
            assert torch.equal(batch.images[row], wanted)
            flipped += flip
    assert 150 < flipped < 234  # of 384, each with probability one half: five standard deviations


def test_the_space_is_known_without_torch():
    code = (
        "import sys; from pmf.data.options import DataConfig, network_shape; "
        "print(network_shape(DataConfig(kind='latents', path='x')), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(4, 32, 32) False"
    assert network_shape(DataConfig(kind="latents", path="x", image_size=512)) == (4, 64, 64)


def test_the_library_is_used_without_diffusers():
    code = (
        "import sys, pmf.training.trainer, pmf.evaluation.command, pmf.data.encoding; print('diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
