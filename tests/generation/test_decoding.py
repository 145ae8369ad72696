"""With which autoencoder latents become images: named on the command line, written down, and compared."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmf.checkpoint.saved_weights import save_weights
from pmf.config.network import network_of
from pmf.config.yaml_file import load_config
from pmf.data import autoencoder as autoencoders
from pmf.data.autoencoder import autoencoder_sha256
from pmf.data.codec import ROUNDING
from pmf.data.latent_codec import LatentCodec
from pmf.distributed.world import ALONE, World
from pmf.errors import AgreedError, UserError
from pmf.generation.command import plan_images
from pmf.generation.plan import plan_samples
from pmf.generation.sampling_request import SamplingRequest
from tests.latents import latent_config, write_autoencoder, write_latent_weights
from tests.launch import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"


@pytest.fixture
def weights(autoencoder, tmp_path) -> Path:
    return write_latent_weights(tmp_path / "network.safetensors", autoencoder)


@pytest.fixture
def call(monkeypatch) -> Callable[..., None]:
    """A verb of eval.py in this process."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["eval.py", *map(str, arguments)])
        importlib.import_module("eval").main()

    return run


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file), int) for file in sorted(folder.glob("*.png"))])


def test_a_folder_is_not_completed_with_another_autoencoder_or_normalization(weights, call, autoencoder, tmp_path):
    images = tmp_path / "images"
    sample = ("sample", "--checkpoint", weights, "--num-images", 4, "--output", images)
    call(*sample)
    record = json.loads((images / "sampling.json").read_text())
    ours, theirs = (autoencoder_sha256(str(folder)) for folder in (autoencoder, write_autoencoder(tmp_path / "o", 1)))
    assert record["autoencoder"] == str(autoencoder)
    assert (record["autoencoder_sha256"], record["latent_normalization"]) == (ours, "meanflow")
    assert record["rounding"] == ROUNDING

    first = images / "000000.png"
    before = pixels(images)
    first.unlink()
    with pytest.raises(UserError, match=rf"\(autoencoder_sha256 is {ours} there, {theirs} here\); delete the folder"):
        call(*sample, "--autoencoder", tmp_path / "o")
    changed = {**record, "latent_normalization": "imf"}
    (images / "sampling.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"\(latent_normalization is imf there, meanflow here\)"):
        call(*sample)
    assert not first.exists()

    # The same weights from another place make the same images.
    (images / "sampling.json").write_text(json.dumps(record))
    shutil.copytree(autoencoder, tmp_path / "moved")
    call(*sample, "--autoencoder", tmp_path / "moved")
    np.testing.assert_array_equal(pixels(images), before)
    assert json.loads((images / "sampling.json").read_text()) == {**record, "autoencoder": str(tmp_path / "moved")}


def test_a_folder_of_pixels_from_before_decoding_was_recorded_is_completed(call, tmp_path):
    config = load_config(DIGITS)
    save_weights(tmp_path / "network.safetensors", network_of(config, inference=True).state_dict(), config)
    sample = ("sample", "--checkpoint", tmp_path / "network.safetensors", "--num-images", 2)
    call(*sample, "--output", tmp_path / "images")
    record = tmp_path / "images" / "sampling.json"
    named = json.loads(record.read_text())
    record.write_text(json.dumps({name: named[name] for name in named if name != "rounding"}))
    call(*sample, "--output", tmp_path / "images")
    assert json.loads(record.read_text()) == named


def test_an_autoencoder_that_moved_is_named_on_the_command_line(call, autoencoder, tmp_path, monkeypatch):
    """With another one the images are others, and the results name it; the path is expanded like any."""
    weights = write_latent_weights(tmp_path / "network.safetensors", tmp_path / "gone")
    monkeypatch.setenv("PLACE", str(autoencoder.parent))
    named = ("--autoencoder", f"$PLACE/{autoencoder.name}")
    common = ("--checkpoint", weights, "--num-images", 20)
    call("sample", *common, *named, "--output", tmp_path / "images")
    other = write_autoencoder(tmp_path / "other", 1)
    call("sample", *common, "--autoencoder", other, "--output", tmp_path / "others")
    assert np.abs(pixels(tmp_path / "images") - pixels(tmp_path / "others")).mean() > 5

    measured = (*common, "--reference", tmp_path / "others", "--extractor", "tests.evaluation.networks:create")
    call("fid", *measured, *named, "--output", tmp_path / "fid.json")
    call("sweep", *measured, *named, "--num-steps", 1, "--output", tmp_path / "sweep")
    for file in (tmp_path / "fid.json", tmp_path / "sweep" / "point_000.json"):
        images = json.loads(file.read_text())["images"]
        assert images["autoencoder"] == str(autoencoder)
        assert images["autoencoder_sha256"] == autoencoder_sha256(str(autoencoder))
    call("sweep", *measured, "--autoencoder", other, "--num-steps", 1, "--output", tmp_path / "same")
    same, differing = (json.loads((tmp_path / name / "point_000.json").read_text()) for name in ("same", "sweep"))
    # Against themselves, but for images that were rounded to bytes in other batches.
    assert same["fid"] < 0.01 * differing["fid"]


def test_the_hash_is_taken_once_for_all_plans(autoencoder, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(autoencoder, moved)
    hashed = []
    take = autoencoders.tensors_sha256
    monkeypatch.setattr(autoencoders, "tensors_sha256", lambda tensors: hashed.append(1) or take(tensors))
    config = load_config(DIGITS).model_copy(update={"data": latent_config(tmp_path, moved)})
    plans = [plan_samples(config, num_images=4, seed=seed, weights="w") for seed in range(3)]
    assert len(hashed) == 1
    assert {plan.decoding["autoencoder_sha256"] for plan in plans} == {autoencoder_sha256(str(autoencoder))}


def test_the_main_rank_is_the_first_to_ask_for_the_autoencoder(weights, monkeypatch):
    """So that one process downloads it. The second of two ranks hears here that the main one has failed."""
    asked = []
    monkeypatch.setattr(LatentCodec, "record", property(lambda _codec: asked.append(1)))
    monkeypatch.setattr(World, "ask_main", lambda _world, find: find())
    monkeypatch.setattr(World, "gather", lambda _world, own: ["the main rank's problem", own])
    request = SamplingRequest(
        checkpoint=weights, recipe=None, num_images=4, labels="all", seed=0, ema=None, overrides={}
    )
    with pytest.raises(AgreedError, match="the main rank's problem"):
        plan_images(request, replace(ALONE, rank=1, size=2))
    assert asked == []
