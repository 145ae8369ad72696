"""Folders of PNGs: what is read, shared out and refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pmf.data.options import DataConfig
from pmf.distributed.world import ALONE
from pmf.errors import UserError
from pmf.evaluation.image_sets import FlatFolder, stream
from pmf.evaluation.subjects import data_subject


def write(folder, index: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> None:
    rng = np.random.default_rng(index)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode).save(
        folder / f"{index:06d}.png"
    )


def read_all(folder) -> None:
    list(stream(FlatFolder(folder), ALONE, 4))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_every_image_once_with_its_own_pixels(tmp_path, ranks, batch_size):
    for index in range(23):
        write(tmp_path, index)
    (tmp_path / "labels.csv").touch()
    (tmp_path / ".000099.png").touch()  # a file that is being written
    images = FlatFolder(tmp_path)
    assert (len(images), images.shape) == (23, (3, 6, 6))
    seen = {}
    for rank in range(ranks):
        for batch in stream(images, replace(ALONE, rank=rank, size=ranks), batch_size):
            assert batch.images.dtype == torch.uint8
            seen |= dict(zip(batch.indices, batch.images, strict=True))
    assert sorted(seen) == list(range(23))
    for index, image in seen.items():
        pixels = np.random.default_rng(index).integers(0, 256, (6, 6, 3), np.uint8)
        np.testing.assert_array_equal(image.numpy(), pixels.transpose(2, 0, 1))
    assert len(FlatFolder(tmp_path, 7)) == 7


def test_grey_images_have_one_channel(tmp_path):
    write(tmp_path, 0, (6, 4), "L")
    assert FlatFolder(tmp_path).shape == (1, 4, 6)


def test_unsuitable_folders_and_files_are_one_line(tmp_path):
    def refused() -> str:
        with pytest.raises(UserError) as error:
            read_all(tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert refused() == f"{tmp_path}: holds no images; give a folder of image files, as eval.py sample writes"
    for index in range(9):
        write(tmp_path, index)
    with pytest.raises(UserError, match="holds 9 images, fewer than --num-images 10"):
        FlatFolder(tmp_path, 10)
    bad = tmp_path / "000009.png"
    write(tmp_path, 9, (6, 5))
    assert f"{bad}: is 6 x 5 pixels with 3 channels, but 000000.png is 6 x 6" in refused()
    write(tmp_path, 9, mode="L")
    assert f"{bad}: is 6 x 6 pixels with 1 channel, but 000000.png is 6 x 6 pixels with 3 channels" in refused()
    for mode in ("RGBA", "P", "1", "LA"):
        write(tmp_path, 9, mode=mode)
        assert f"{bad}: has mode {mode}; allowed are L, RGB" in refused()
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(bad)
    assert f"{bad}: has mode I;16; allowed are" in refused()
    write(tmp_path, 9)
    whole = bad.read_bytes()
    for content in (whole[:70], whole[:-30], b"", b"<html>", whole[:60] + b"\xff" + whole[61:]):
        bad.write_bytes(content)
        assert f"{bad}: cannot be decoded (" in refused()
    with pytest.raises(UserError, match="there is no such folder"):
        FlatFolder(tmp_path / "nowhere")


def test_a_data_set_is_measured_with_pillows_pixels_whatever_training_uses(tmp_path):
    (tmp_path / "class").mkdir()
    for index in range(3):
        write(tmp_path / "class", index, (90, 70))
    pixels = {}
    for resampling in ("pillow", "torch"):
        data = DataConfig(kind="imagefolder", path=str(tmp_path), num_classes=1, image_size=32, resampling=resampling)
        (batch,) = data_subject(data, ALONE).batches()
        pixels[resampling] = batch.images
    assert torch.equal(pixels["pillow"], pixels["torch"])
