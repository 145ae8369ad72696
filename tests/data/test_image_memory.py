"""Memory that one image takes: bounded by its pixels and never by its shape, for training data and measured sets."""

from __future__ import annotations

import ctypes
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmf.data.options import DataConfig
from pmf.data.source import CorruptImage, Sample, create_source
from pmf.data.transforms import MAX_PIXELS, ImageError, center_crop, decode
from pmf.errors import UserError
from pmf.evaluation.image_sets import FlatFolder

SIDE = 1000
BYTES_PER_PIXEL = 20  # what transforms.py states; measured 8 ... 18.3 at 9 million pixels
# Row buffers and tables of the decoders, and the allocator's own pieces.
FIXED_BYTES = 8 * 2**20


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_header_only(width: int, height: int) -> bytes:
    """A PNG of one colour whose size is a few kilobytes whatever its sides are; its pixels are black."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def peak() -> Callable[[Callable[[], object]], int]:
    """Bytes that this process's memory grows by, at most, while something is called."""
    counter = Path("/proc/self/clear_refs")
    if not counter.exists():
        pytest.skip("only Linux can reset the peak of a process's memory")

    def kilobytes(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    def measure(call: Callable[[], object]) -> int:
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be used again, unseen
        counter.write_text("5")
        before = kilobytes("VmRSS")
        call()
        return 1024 * (kilobytes("VmHWM") - before)

    return measure


def pictures() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)).resize((SIDE, SIDE))
    grey = np.asarray(colour.convert("L"))
    turned = [colour.rotate(180)]
    palette = colour.convert("P")
    animated = {"save_all": True, "append_images": turned}
    yield "RGB", encode(colour, "PNG")
    yield "transparent", encode(colour.convert("RGBA"), "PNG")
    yield "palette with transparency", encode(palette, "PNG", transparency=b"\x00\x80")
    yield "16 bits", encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    yield "32 bits", encode(Image.fromarray(grey.astype(np.int32) * 257), "TIFF")
    yield "CMYK", encode(colour.convert("CMYK"), "JPEG")
    yield "progressive", encode(colour, "JPEG", progressive=True)
    yield "CMYK TIFF", encode(colour.convert("CMYK"), "TIFF", compression="tiff_lzw")
    yield "WebP", encode(colour.convert("RGBA"), "WEBP", lossless=True, method=0)
    yield "animated WebP", encode(colour, "WEBP", method=0, **animated)
    yield "animated GIF", encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)])
    yield "animated PNG", encode(colour, "PNG", **animated)


def test_no_format_or_mode_takes_more_than_is_stated_for_a_pixel(peak) -> None:
    used = {}
    for name, data in pictures():
        used[name] = peak(lambda data=data: decode(data, 3, 64)) / SIDE**2
    assert max(used.values()) < BYTES_PER_PIXEL + FIXED_BYTES / SIDE**2, used
    assert min(used.values()) > 4, used  # one copy of the pixels: that the peak is seen at all


@pytest.mark.parametrize("shape", [(60_000, 1), (1, 60_000), (2_000_000, 2), (20_000, 40)])
def test_thin_images_are_cropped_or_counted_as_corrupt(shape: tuple[int, int], tmp_path: Path, peak) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "0.png"
    file.write_bytes(png_header_only(*shape))
    assert file.stat().st_size < 5000
    config = DataConfig(kind="imagefolder", path=str(tmp_path), image_size=256, num_classes=1)
    source = create_source(config, 0)
    found: list[Sample | CorruptImage] = []
    # The enlarged image of 20000 x 40 has 33 million pixels of three bytes, held in four.
    assert peak(lambda: found.extend(source.samples(np.arange(1)))) < 4 * 2**25 + 2**26
    if shape == (20_000, 40):
        assert isinstance(found[0], Sample)
        assert found[0].image.shape == (3, 256, 256)
    else:
        assert f"{shape[0]} x {shape[1]} pixels enlarged to " in str(found[0])
        assert "are more than the 89,478,485 that are unpacked" in str(found[0])


def plain_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop as it is written in the papers' code: enlarge or shrink the whole, then cut."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@pytest.mark.parametrize("size", [8, 32, 61])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_is_cropped_has_the_papers_pixels_whatever_its_shape(size: int, mode: str) -> None:
    rng = np.random.default_rng(0)
    tall = [(70, 70 * part // 20) for part in range(36, 45)]  # Pillow 13 changes its order at twice the width
    shapes = [(1, 1), (1, 700), (900, 3), (333, 77), (65, 64), (31, 500), (size, size), *tall]
    for width, height in [*shapes, *rng.integers(1, 200, (60, 2))]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
        np.testing.assert_array_equal(np.asarray(center_crop(image, size)), np.asarray(plain_crop(image, size)))


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 14_000, 30_000])
def test_more_pixels_than_are_unpacked(side: int, tmp_path: Path, peak) -> None:
    """Between Pillow's limit and twice it, where Pillow warns, and above, where it refuses."""
    data = png_header_only(side, side)
    (tmp_path / "0.png").write_bytes(data)

    def refused() -> None:
        with pytest.raises(ImageError, match=r"exceeds limit|are more than"):
            decode(data, 3, 16)
        with pytest.raises(UserError) as error:
            FlatFolder(tmp_path)
        assert str(error.value).startswith(f"{tmp_path}/0.png: cannot be decoded (Image size (")
        assert "\n" not in str(error.value)

    assert peak(refused) < FIXED_BYTES


def test_the_limit_holds_where_pillows_own_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="14000 x 14000 pixels are more than the 89,478,485 that are unpacked"):
        decode(png_header_only(14_000, 14_000), 3, 16)


def test_the_limit_holds_for_a_tile_that_is_larger_than_its_image() -> None:
    tags = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16_000, 323: 16_000, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    with pytest.raises(ImageError, match="16000 x 16000 pixels are more than the 89,478,485 that are unpacked"):
        decode(data, 1, 8)


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path, peak) -> None:
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "0.png").open("wb") as file:
        file.truncate(8 * MAX_PIXELS + 1)  # a hole: it takes no room
    source = create_source(DataConfig(kind="imagefolder", path=str(tmp_path), image_size=8, num_classes=1), 0)
    found: list[Sample | CorruptImage] = []
    assert peak(lambda: found.extend(source.samples(np.arange(1)))) < FIXED_BYTES
    assert "its file has 715827881 bytes, more than 715827880" in str(found[0])
