import io

import numpy as np
import pytest
from PIL import Image

from pmf.config.yaml_file import config_from_plain
from pmf.data.options import DataConfig
from pmf.data.source import CorruptImage, Sample, prepare
from pmf.data.transforms import ImageError, center_crop, decode
from pmf.errors import UserError


@pytest.mark.parametrize("size", [(1, 1), (7, 900), (900, 7), (16, 16), (31, 32), (33, 65)])
def test_center_crop_of_any_size(size: tuple[int, int]) -> None:
    assert center_crop(Image.new("RGB", size), 16).size == (16, 16)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (8, 8), colour)


def palette_image() -> Image.Image:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(flat("RGB", (10, 20, 30))), (10, 20, 30)),
        (encode(flat("L", 77)), (77, 77, 77)),
        (encode(flat("1", 1)), (255, 255, 255)),
        (encode(flat("LA", (77, 3))), (77, 77, 77)),
        (encode(flat("RGBA", (10, 20, 30, 0))), (10, 20, 30)),
        (encode(palette_image()), (10, 20, 30)),
        (encode(palette_image(), transparency=b"\x00\x80"), (10, 20, 30)),
        (encode(flat("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encode(flat("CMYK", (255, 0, 255, 0)), "JPEG", quality=100), (0, 255, 0)),
        (encode(flat("I;16", 257 * 77)), (77, 77, 77)),
        (encode(flat("I;16", 65535)), (255, 255, 255)),
        (encode(flat("I;16", 300)), (1, 1, 1)),
        (encode(flat("I", 257 * 200), "TIFF"), (200, 200, 200)),
    ],
)
def test_every_mode_gives_its_colour(data: bytes, expected: tuple[int, int, int]) -> None:
    decoded = decode(data, 3, 4)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (3, 4, 4)
    np.testing.assert_array_equal(decoded, np.broadcast_to(np.array(expected)[:, None, None], (3, 4, 4)))


def test_grey_uses_luma_and_exif_orientation_is_ignored() -> None:
    assert decode(encode(flat("RGB", (255, 0, 0))), 1, 4).tolist() == [[[76] * 4] * 4]
    ramp = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(decode(encode(ramp, exif=exif), 1, 8)[0], np.asarray(ramp))


def test_broken_images_are_image_errors() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    good = encode(Image.fromarray(noise))
    broken = {
        "not an image": b"hello",
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "corrupt": good[:60] + bytes(40) + good[100:],
        "float": encode(flat("F", 0.5), "TIFF"),
        "32 bits": encode(flat("I", 70000), "TIFF"),
    }
    for data in broken.values():
        with pytest.raises(ImageError) as caught:
            decode(data, 3, 16)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)


def test_an_image_bomb_is_refused_before_it_is_unpacked() -> None:
    # Just above Pillow's limit, where Pillow itself only warns.
    side = int(Image.MAX_IMAGE_PIXELS**0.5) + 1
    with pytest.raises(ImageError, match="exceeds limit"):
        decode(encode(Image.new("1", (side, side))), 3, 16)


def test_formats_that_start_other_programs_are_refused() -> None:
    # Pillow hands PostScript to Ghostscript, a program in which images can be programs.
    for data in (encode(flat("RGB", (1, 2, 3)), "EPS"), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"):
        with pytest.raises(ImageError, match=r"^not one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM$"):
            decode(data, 3, 4)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(300, 200), (131, 260), (64, 64), (40, 90), (700, 900), (3000, 2100)])
def test_torch_resamples_as_pillow_does_but_for_rounding(mode: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize(size)
    noise = rng.integers(-16, 17, (size[1], size[0], 3), np.int16)
    image = Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).convert(mode)
    data, channels = encode(image, "TIFF"), 1 if mode == "L" else 3
    pillow, torch = (decode(data, channels, 64, resampling) for resampling in ("pillow", "torch"))
    assert torch.shape == pillow.shape == (channels, 64, 64)
    assert torch.flags.c_contiguous
    assert torch.flags.writeable
    difference = np.abs(torch.astype(int) - pillow.astype(int))
    # Weights of 16 bits in place of 22: a sum that lies at half a step goes the other way.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("resampling", ["pillow", "torch"])
def test_what_cannot_be_decoded_is_refused_in_the_same_words_by_both(resampling: str) -> None:
    config = DataConfig(kind="imagefolder", path="x", image_size=256, resampling=resampling)
    whole = encode(Image.new("RGB", (300, 280)), "JPEG")
    for data, reason in (
        (whole[:-200], "image file is truncated"),
        (b"text", "not one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"),
        (encode(Image.new("RGB", (60_000, 1))), "60000 x 1 pixels enlarged to 15360000 x 256 pixels are more than"),
    ):
        found = prepare(data, 0, config, "x/a.jpg")
        assert isinstance(found, CorruptImage)
        assert reason in str(found)
    assert isinstance(prepare(whole, 0, config, "x/a.jpg"), Sample)


def test_the_option_reaches_the_pixels_and_has_two_values() -> None:
    rng = np.random.default_rng(0)
    data = encode(Image.fromarray(rng.integers(0, 256, (90, 70, 3), np.uint8)))
    samples = [
        prepare(data, 0, DataConfig(kind="imagefolder", path="x", image_size=32, resampling=resampling), "x")
        for resampling in ("pillow", "torch")
    ]
    for sample, resampling in zip(samples, ("pillow", "torch"), strict=True):
        assert isinstance(sample, Sample)
        np.testing.assert_array_equal(sample.image, decode(data, 3, 32, resampling))
    assert not np.array_equal(samples[0].image, samples[1].image)
    with pytest.raises(UserError, match=r"data\.resampling is 'opencv': input should be 'pillow' or 'torch'"):
        config_from_plain({"data": {"kind": "synthetic", "resampling": "opencv"}}, "config")
