"""Noise and labels of the official PyTorch evaluations, so that images can be compared one by one."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pmf.checkpoint.saved_weights import load_weights
from pmf.data.codec import to_uint8
from pmf.errors import UserError
from pmf.flow.parameterization import ImagePrediction
from pmf.flow.sampler import generate
from pmf.generation.images import inference_network
from pmf.generation.noise import NoiseOptions, image_noise
from pmf.generation.plan import SamplingPlan
from tests.launch import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"

# By (image, seed): the first values of torch.randn(4, 32, 32) from a CPU generator of seed 42, 43, 50021 and 14.
NORMALS = {
    (0, 42): (1.9269152879714966, 1.4872840642929077, 0.9007171988487244),
    (1, 42): (-0.016603613272309303, -0.4667949378490448, 2.090897560119629),
    (49_999, 42): (-0.8484945893287659, -0.11214780062437057, 1.046767234802246),
    (7, 2**32 + 9): (-0.34178638458251953, -0.09564945101737976, 1.3965263366699219),
}


@pytest.mark.parametrize(("index", "seed"), NORMALS)
def test_official_noise_is_torchs_with_the_seed_xor_the_index(index, seed):
    options = NoiseOptions(seed=seed, shape=(4, 32, 32), scale=2.0, kind="official")
    noise = image_noise(options, [index])
    # processors differ in the last bits of a logarithm and a cosine
    assert noise.flatten()[:3].tolist() == pytest.approx([2.0 * value for value in NORMALS[index, seed]], rel=1e-5)
    assert noise.shape == (1, 4, 32, 32)
    assert not torch.allclose(noise, image_noise(dataclasses.replace(options, kind="ours"), [index]))


def test_official_noise_of_an_image_does_not_depend_on_its_batch():
    several = image_noise(NoiseOptions(seed=42, shape=(3, 8, 8), scale=1.0, kind="official"), [3, 0, 8])
    expected = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(34))  # 8 xor 42
    assert torch.equal(several[2], expected)


def test_blocks_are_fifty_of_each_class_in_50_000_images():
    settings = {"num_images": 50_000, "seed": 42, "settings": {}, "decoding": {}, "weights": "w"}
    plan = SamplingPlan(labels=tuple(range(1000)), images_in_a_row=50, **settings)
    labels = np.array([plan.label(index) for index in range(50_000)])
    np.testing.assert_array_equal(labels, np.repeat(np.arange(1000), 50))
    cycled = SamplingPlan(labels=tuple(range(1000)), **settings)
    assert [cycled.label(index) for index in (0, 1, 49, 50, 1000)] == [0, 1, 49, 50, 0]


def test_sampled_with_both_they_are_the_images_of_that_noise_and_those_labels(weights, call, tmp_path):
    official = ("--noise", "official", "--labels", "blocks", "--seed", 42, "--num-images", 20)
    sample = ("sample", "--checkpoint", weights, "--output", tmp_path / "images", "--omega", 2, "--interval", 0.1, 0.6)
    call(*sample, *official)
    saved = load_weights(weights, None)
    network = inference_network(saved.config, saved.weights, torch.device("cpu"), "test")
    noise = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(index ^ 42)) for index in range(20)]
    images = generate(
        network,
        ImagePrediction(),
        torch.stack(noise),
        torch.arange(10).repeat_interleave(2),
        omega=2.0,
        interval=(0.1, 0.6),
    )
    for index, image in enumerate(to_uint8(images)):
        written = np.asarray(Image.open(tmp_path / "images" / f"{index:06d}.png"), int)
        # in another batch a value on the edge between two bytes may fall to the other side
        assert np.abs(written - image[0].numpy()).max() <= 1
    rows = list(csv.DictReader((tmp_path / "images" / "labels.csv").read_text().splitlines()))
    assert [int(row["label"]) for row in rows] == [index // 2 for index in range(20)]
    record = json.loads((tmp_path / "images" / "sampling.json").read_text())
    assert (record["noise"], record["labels"], record["images_in_a_row"]) == ("official", list(range(10)), 2)

    call(*sample, *official)  # goes on
    for other, message in (
        (("--noise", "ours"), r"noise is official there, ours here"),
        (("--labels", "all"), r"images_in_a_row is 2 there, 1 here"),
    ):
        with pytest.raises(UserError, match=message):
            call(*sample, *official, *other)


def test_both_are_in_the_records_of_measures_and_the_noise_is_swept(weights, call, tmp_path):
    common = ("--checkpoint", weights, "--reference", "digits", "--num-images", 20, "--labels", "blocks")
    call("fid", *common, "--noise", "official", "--output", tmp_path / "fid.json")
    images = json.loads((tmp_path / "fid.json").read_text())["images"]
    assert (images["noise"], images["labels"]) == ("official", "blocks")
    call("sweep", *common, "--noise", "ours", "official", "--output", tmp_path / "sweep")
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").read_text().splitlines()))
    assert [row["noise"] for row in rows] == ["ours", "official"]
    assert float(rows[1]["fid"]) == pytest.approx(json.loads((tmp_path / "fid.json").read_text())["fid"], rel=1e-9)
    assert rows[0]["fid"] != rows[1]["fid"]


def test_a_folder_of_before_either_existed_is_completed(weights, call, tmp_path):
    sample = ("sample", "--checkpoint", weights, "--output", tmp_path / "images", "--num-images", 20)
    call(*sample)
    record = tmp_path / "images" / "sampling.json"
    named = json.loads(record.read_text())
    record.write_text(json.dumps({name: named[name] for name in named if name not in ("noise", "images_in_a_row")}))
    first = tmp_path / "images" / "000003.png"
    before = first.read_bytes()
    first.unlink()
    with pytest.raises(UserError, match=r"noise is ours there, official here"):
        call(*sample, "--noise", "official")
    with pytest.raises(UserError, match=r"images_in_a_row is 1 there, 2 here"):
        call(*sample, "--labels", "blocks")
    call(*sample)
    assert first.read_bytes() == before
    assert json.loads(record.read_text()) == named
