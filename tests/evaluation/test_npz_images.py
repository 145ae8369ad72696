"""ADM's ``.npz`` of images: read as it is, in pieces, and told from statistics by what is in it."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pmf.distributed.world import ALONE
from pmf.errors import UserError
from pmf.evaluation.image_sets import stream
from pmf.evaluation.npz_images import NpzImages, array_names


@pytest.fixture
def pixels() -> np.ndarray:
    """(23, 5, 6, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (23, 5, 6, 3), np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_image_once_with_its_own_pixels(tmp_path: Path, pixels: np.ndarray, save, ranks: int) -> None:
    save(tmp_path / "set.npz", pixels, np.arange(23))  # arr_1: ADM's labels
    images = NpzImages(tmp_path / "set.npz")
    images.verify()
    assert (len(images), images.shape) == (23, (3, 5, 6))
    seen = {}
    for rank in range(ranks):
        for batch in stream(images, replace(ALONE, rank=rank, size=ranks), 4):
            seen |= dict(zip(batch.indices, batch.images, strict=True))
    assert sorted(seen) == list(range(23))
    for index, image in seen.items():
        np.testing.assert_array_equal(image.numpy(), pixels[index].transpose(2, 0, 1))
    assert len(NpzImages(tmp_path / "set.npz", 7)) == 7
    grey = tmp_path / "grey.npz"
    save(grey, pixels[..., :1])
    assert NpzImages(grey).shape == (1, 5, 6)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_array_is_never_in_memory_as_a_whole(tmp_path: Path, save) -> None:
    save(tmp_path / "set.npz", np.zeros((64, 256, 256, 3), np.uint8))  # 12.6 MB
    images = NpzImages(tmp_path / "set.npz")
    tracemalloc.start()
    try:
        images.verify()
        for _ in images.read(np.arange(40, 64)):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6  # one image of 197 kB and a chunk of 1 MiB, each in three copies while it is unpacked


def statistics() -> dict[str, np.ndarray]:
    return {"mu": np.zeros(16), "sigma": np.eye(16)}


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"arr_0": np.zeros((9, 4, 4, 3))}, "has shape (9, 4, 4, 3) and type float64"),
        ({"arr_0": np.zeros((9, 3, 4, 4), np.uint8)}, "has shape (9, 3, 4, 4) and type uint8"),
        ({"arr_0": np.zeros((9, 4, 4), np.uint8)}, "has shape (9, 4, 4) and type uint8"),
        ({"arr_0": np.zeros((9, 4, 4, 4), np.uint8)}, "has shape (9, 4, 4, 4) and type uint8"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "has shape (0, 4, 4, 3) and type uint8"),
        ({"arr_0": np.zeros((9, 4, 4, 3), np.uint8, "F")}, "has shape (9, 4, 4, 3) and type uint8 in Fortran's order"),
        ({"arr_0": np.array([None, {}])}, "has shape (2,) and type object"),
        (statistics(), "holds mu, sigma; a set of images is arr_0: N x H x W x 3, uint8"),
    ],
)
def test_other_contents_are_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError) as error:
        NpzImages(path)
    assert str(error.value).startswith(f"{path}: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def problem_of(path: Path) -> str | None:
    try:
        NpzImages(path).verify()
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_one_line_wherever_the_damage_is(tmp_path: Path, pixels: np.ndarray, save) -> None:
    path = tmp_path / "set.npz"
    save(path, pixels)
    whole, channels_first = path.read_bytes(), pixels.transpose(0, 3, 1, 2)
    member = len("arr_0.npy") + 30
    for place in [*range(member, len(whole), len(whole) // 60), len(whole) - 30]:
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        problem = problem_of(path)
        if problem is None:  # in the directory's dates and rights, which say nothing of the pixels
            assert place > len(whole) - 120 or place < member + 30
            np.testing.assert_array_equal(np.stack(list(NpzImages(path).read(np.arange(23)))), channels_first)
        else:
            assert problem.startswith(f"{path}: ")
            assert "\n" not in problem
    for content in (whole[: len(whole) // 2], b"", b"not a zip"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"set\.npz: is not an intact \.npz file"):
            NpzImages(path)
        assert array_names(path) == frozenset()


def test_an_array_that_is_shorter_than_its_header_says(tmp_path: Path, pixels: np.ndarray) -> None:
    stream_ = io.BytesIO()
    np.save(stream_, pixels)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("arr_0.npy", stream_.getvalue()[:-1])
    with pytest.raises(UserError, match=r"set\.npz: is not an intact \.npz file \(image 22 cannot be read\)"):
        list(NpzImages(tmp_path / "set.npz").read(np.arange(23)))
    with pytest.raises(UserError, match="holds 23 images, fewer than --num-images 24"):
        NpzImages(tmp_path / "set.npz", 24)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    class MakesFolder:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    np.savez(tmp_path / "set.npz", np.array([MakesFolder()], object))
    with pytest.raises(UserError, match="type object"):
        NpzImages(tmp_path / "set.npz")
    assert not (tmp_path / "hacked").exists()
    assert json.dumps(sorted(array_names(tmp_path / "set.npz"))) == '["arr_0"]'
