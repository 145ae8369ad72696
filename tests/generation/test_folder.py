"""Folders of PNGs: what image i depends on, interruption, and the commands."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pmf.data.codec import to_uint8
from pmf.distributed.world import ALONE
from pmf.generation.images import own_batches
from pmf.generation.noise import NoiseOptions, image_noise
from pmf.generation.pictures import contact_sheet, save_png
from tests.launch import run_command


@pytest.fixture
def run(digits_run):
    return digits_run


def sample(run, output, *arguments, ranks=1):
    return run_command("eval.py", "sample", "--checkpoint", str(run), "--output", str(output), *arguments, ranks=ranks)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.png"))}


def test_noise_of_an_image_is_a_function_of_seed_and_index():
    first, second, third = (NoiseOptions(seed=seed, shape=(3, 8, 8), scale=2.0) for seed in (1, 2, 3))
    several = image_noise(first, [0, 5, 9])
    assert torch.equal(several[1], image_noise(first, [5])[0])
    assert not torch.equal(several[1], image_noise(second, [5])[0])
    many = image_noise(third, range(500))
    # 96,000 normals: standard error of the mean 0.0065, of the deviation 0.0046
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.std()) - 2.0) < 0.03
    assert len({tuple(row[:4].tolist()) for row in many.flatten(1)}) == 500


@pytest.mark.parametrize("num_images", [1, 4, 20, 23])
def test_batches_are_the_same_for_any_number_of_ranks_and_as_many_on_each(num_images):
    alone = list(own_batches(num_images, 5, ALONE))
    assert [index for batch in alone for index in batch] == list(range(num_images))
    for size in (2, 3):
        worlds = [dataclasses.replace(ALONE, rank=rank, size=size) for rank in range(size)]
        shares = [list(own_batches(num_images, 5, world)) for world in worlds]
        assert len({len(share) for share in shares}) == 1
        assert sorted((b for share in shares for b in share if b), key=lambda batch: batch.start) == alone


def test_the_folder_is_the_same_for_one_process_and_two_and_after_an_interruption(run, tmp_path):
    first = sample(run, tmp_path / "one", "--num-images", "23", "--batch-size", "5", "--seed", "3")
    assert first.returncode == 0, first.stderr
    names = [f"{index:06d}.png" for index in range(23)]
    one = hashes(tmp_path / "one")
    assert list(one) == names

    two = sample(run, tmp_path / "two", "--num-images", "23", "--batch-size", "5", "--seed", "3", ranks=2)
    assert two.returncode == 0, two.stderr
    assert hashes(tmp_path / "two") == one

    for name in names[4:9]:
        (tmp_path / "one" / name).unlink()
    again = sample(run, tmp_path / "one", "--num-images", "23", "--batch-size", "5", "--seed", "3")
    assert again.returncode == 0, again.stderr
    assert hashes(tmp_path / "one") == one

    rows = list(csv.DictReader((tmp_path / "one" / "labels.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == names
    assert [int(row["label"]) for row in rows] == [index % 10 for index in range(23)]

    other = sample(run, tmp_path / "one", "--num-images", "23", "--batch-size", "5", "--seed", "4")
    assert other.returncode == 2
    assert "seed is 3 there, 4 here" in other.stderr
    assert hashes(tmp_path / "one") == one


def test_arguments_reach_the_sampler(run, tmp_path):
    arguments = ["--num-images", "4", "--labels", "7,2", "--ema", "online", "--omega", "3", "--interval", "0.2", "0.8"]
    result = sample(run, tmp_path / "a", *arguments, "--num-steps", "2")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "a" / "sampling.json").read_text())
    assert record["labels"] == [7, 2]
    assert (record["omega"], record["interval"], record["num_steps"]) == (3.0, [0.2, 0.8], 2)
    assert record["weights"].startswith("step_00000012/model.safetensors")


def test_png_files_hold_the_pixels(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        image = torch.randint(256, (channels, 5, 5), generator=generator, dtype=torch.uint8)
        save_png(image, tmp_path / "image.png")
        pixels = np.asarray(Image.open(tmp_path / "image.png")).reshape(5, 5, channels)
        np.testing.assert_array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_rounding_is_to_the_nearest_and_clips():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]


def test_a_contact_sheet_enlarges_and_frames():
    images = torch.stack([torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (10, 20, 30)])
    sheet = contact_sheet(images, columns=2)
    assert sheet.shape == (1, 2 * 33 + 1, 2 * 33 + 1)
    assert [int(sheet[0, y, x]) for y, x in ((1, 1), (1, 34), (34, 1), (34, 34), (0, 0))] == [10, 20, 30, 255, 255]
