import io

import numpy as np
import pytest
from PIL import Image

from pmf.data.transforms import ImageError, center_crop, decode


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
