"""JPEGs for torch's filter: the pixels, and the verdict on broken files, are Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pmf.data.transforms import ImageError, _decode_jpeg, center_crop_by_torch, decode, open_image


def picture(rng: np.random.Generator, noise: int = 24) -> Image.Image:
    size = tuple(rng.integers(1, 70, 2).tolist())
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(size)
    fine = rng.integers(-noise, noise + 1, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def decoded_fast(data: bytes) -> np.ndarray | None:
    try:
        return _decode_jpeg(Image.open(io.BytesIO(data), formats=["JPEG"]), data)
    except Exception:  # Pillow cannot make out the header, and decides that already
        return None


def assert_as_pillow(data: bytes) -> bool:
    """Whether the fast way took the file; if so, Pillow does too and with the same pixels."""
    fast = decoded_fast(data)
    if fast is not None:
        np.testing.assert_array_equal(fast, np.asarray(open_image(io.BytesIO(data))))
    return fast is not None


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


KINDS = {
    "plain": {},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_blocks": 2},
    "rows of restarts": {"restart_marker_rows": 1, "progressive": True},
    "comment": {"comment": b"\xff\xd8\xff\xd9"},
    "exif": {"exif": exif()},
    "profile": {"icc_profile": bytes(range(256)) * 8},
    "stored as RGB": {"keep_rgb": True, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_colour_jpeg_is_taken_with_pillows_bytes(kind: str) -> None:
    rng = np.random.default_rng(0)
    for quality in range(1, 101, 9):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            data = encode(picture(rng), quality=quality, **{"subsampling": subsampling, **KINDS[kind]})
            assert assert_as_pillow(data)
            assert assert_as_pillow(data + b"after the end")


@pytest.mark.parametrize("subsampling", ["411", "440"])
def test_subsamplings_that_pillow_only_reads(subsampling: str) -> None:
    import simplejpeg  # machines that only run the tests for a GPU may lack it

    rng = np.random.default_rng(0)
    for quality in range(1, 101, 9):
        pixels = np.ascontiguousarray(picture(rng))
        assert assert_as_pillow(simplejpeg.encode_jpeg(pixels, quality, colorsubsampling=subsampling))


def test_other_files_go_to_pillow() -> None:
    image = picture(np.random.default_rng(0))
    for mode in ("L", "CMYK"):
        assert decoded_fast(encode(image.convert(mode))) is None
    stream = io.BytesIO()
    image.save(stream, "PNG")
    assert _decode_jpeg(Image.open(stream), stream.getvalue()) is None


def test_a_cut_file_goes_to_pillow_wherever_it_is_cut() -> None:
    rng = np.random.default_rng(0)
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        whole = encode(picture(rng), **options)
        assert not [end for end in range(0, len(whole), 3) if decoded_fast(whole[:end]) is not None]
        assert decoded_fast(whole[:-1]) is None


def test_of_damaged_files_none_is_taken_that_pillow_refuses_or_sees_differently() -> None:
    rng = np.random.default_rng(0)
    wholes = [encode(picture(rng), quality=60, **options) for options in KINDS.values()]
    taken = 0
    for number in range(1000):
        data = bytearray(wholes[number % len(wholes)])
        place = int(rng.integers(len(data) if number % 2 else min(len(data), 700)))  # every other one in the header
        match number % 5:
            case 0 | 1:
                data[place] ^= 1 << int(rng.integers(8))
            case 2:
                data[place] = int(rng.integers(256))
            case 3:
                del data[place : place + int(rng.integers(1, 30))]
            case _:
                data[place:place] = rng.choice([0, 255, 0xD0, 0xD8, 0xD9, 0xDA, 0xE1], 3).astype(np.uint8).tobytes()
        taken += assert_as_pillow(bytes(data))
    assert 100 < taken < 900  # flipped bits of coefficients are not seen as damage; what is cut or inserted is


def test_a_header_that_names_two_sizes_is_pillows() -> None:
    whole = encode(Image.new("RGB", (40, 30), (200, 10, 90)))
    start = whole.index(b"\xff\xc0")
    frame = whole[start : start + 19]
    larger = frame[:5] + b"\xff\x00\xff\x00" + frame[9:]  # 65280 x 65280 pixels
    for data in (whole[:start] + larger + whole[start:], whole[:start] + frame + larger + whole[start + 19 :]):
        assert decoded_fast(data) is None
        with pytest.raises(ImageError):
            decode(data, 3, 16, "torch")


def test_the_crop_is_made_of_those_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        data = encode(picture(rng))
        expected = center_crop_by_torch(np.array(open_image(io.BytesIO(data))), 16)
        np.testing.assert_array_equal(decode(data, 3, 16, "torch"), expected)
