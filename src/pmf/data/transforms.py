"""From encoded bytes to the square uint8 training image, byte for byte as the papers prepare it."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

# Pillow's decoders of these are in this process and read pixels only; that of EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Pillow's own default. With the most that any format and mode was measured to need, 20 bytes a pixel for a WebP, an
# image takes 1.8 GB and its file while it is decoded; what would take more counts as one that cannot be decoded.
MAX_PIXELS = 89_478_485
# 16 bits in each of four channels, not compressed.
MAX_FILE_BYTES = 8 * MAX_PIXELS
# Tags of a TIFF.
TILEWIDTH, TILELENGTH = 322, 323
SIXTEEN_TO_EIGHT_BITS = [(value + 128) // 257 for value in range(2**16)]


class ImageError(ValueError):
    """Bytes that are not an image this library can use; the text is one line."""


def decode(data: bytes, channels: int, size: int, resampling: str = "pillow") -> np.ndarray:
    """Decode, convert and centre-crop one image. EXIF orientation is not applied, as in the papers.

    Args:
        data: an encoded image in one of ``FORMATS``, of any mode; of several frames the first is taken.
        channels: 1 for grey, 3 for RGB; transparency is dropped.
        size: side of the result in pixels.
        resampling: ``pillow``, or ``torch`` for torch's bicubic filter.

    Returns:
        uint8 (channels, size, size).

    Raises:
        ImageError: for anything that cannot be decoded, and for images that have more than ``MAX_PIXELS`` pixels, or
            would have after the crop's enlargement of a short side.
    """
    with _image_errors():
        image = _open_header(io.BytesIO(data))
        if resampling == "torch" and channels == 3 and (pixels := _decode_jpeg(image, data)) is not None:
            return center_crop_by_torch(pixels, size)
        image.load()
        image = _convert(image, "L" if channels == 1 else "RGB")
        if resampling == "torch":
            return center_crop_by_torch(np.array(image), size)
        image = center_crop(image, size)
        # One plane after the other: as pixels they would be copied twice more.
        planes = bytearray().join(image.tobytes("raw", band) for band in image.getbands())
    return np.frombuffer(planes, np.uint8).reshape(channels, size, size)


def open_image(file: BinaryIO | Path) -> Image.Image:
    """An image with its pixels read, in the mode of its file.

    Raises:
        ImageError: for anything that cannot be decoded, and for more than ``MAX_PIXELS`` pixels; those stay packed.
        OSError: there is no such file, or it may not be read.
    """
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return open_image(stream)
    with _image_errors():
        image = _open_header(file)
        image.load()
    return image


@contextmanager
def _image_errors() -> Iterator[None]:
    """Makes an ``ImageError`` of whatever broken files make the libraries raise, and of Pillow's warning of a bomb."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit, also where a frame turns out larger than the header said.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (MemoryError, ImportError, ImageError):
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, ...
        raise ImageError(_one_line(error)) from None


def _open_header(file: BinaryIO) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    for width, height in _unpacked_sizes(image):  # Pillow's own limit can be moved, and knows nothing of tiles
        if width * height > MAX_PIXELS:
            raise ImageError(_too_large((width, height)))
    return image


def _decode_jpeg(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Pillow's pixels of a colour JPEG, where torch can take them as they are; None where Pillow has to decide.

    Both decode with libjpeg-turbo, in the same way. Here its least warning counts as a failure, so that which files are
    broken, and what is said of them, is Pillow's alone.

    Args:
        image: what Pillow made of the header.
        data: the file.

    Returns:
        uint8 (height, width, 3).
    """
    import simplejpeg  # only this resampling needs it

    if image.format != "JPEG" or image.mode != "RGB":
        return None
    shape = (image.height, image.width, 3)
    try:  # a buffer of that size: of a broken header the libraries may take different markers for the size
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", buffer=np.empty(shape, np.uint8))
    except ValueError:
        return None
    return pixels if pixels.shape == shape else None


def _one_line(error: Exception) -> str:
    # Pillow names the in-memory file by its address, which helps nobody.
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not one of {', '.join(FORMATS)}"
    return " ".join(str(error).split()) or type(error).__name__


def _unpacked_sizes(image: Image.Image) -> list[tuple[int, int]]:
    """Width and height of the image, and of a TIFF's tile, which is unpacked whole and may be larger than the image."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    return [image.size, (tags.get(TILEWIDTH, 0), tags.get(TILELENGTH, 0))]


def _too_large(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels are more than the {MAX_PIXELS:,} that are unpacked"


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _sixteen_to_eight_bits(image)
    elif image.mode == "F":
        raise ImageError("float pixels (mode F) have no known range; convert the file to 8 or 16 bits")
    elif image.mode in ("P", "PA"):
        # Straight to RGB, Pillow warns about palettes with transparency; the colours are the same.
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 0..65535 to 0..255, rounded; Pillow's own conversion clips at 255."""
    low, high = cast("tuple[int, int]", image.getextrema()) if image.mode == "I" else (0, 0)
    if low < 0 or high > 65535:
        raise ImageError(f"32-bit grey values {low}..{high} are outside 0..65535; convert the file to 8 or 16 bits")
    return image.convert("I").point(SIXTEEN_TO_EIGHT_BITS, "L")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve with a box filter while possible, bicubic to the exact short side, cut the middle.

    Args:
        image: mode L or RGB, any width and height.
        size: side of the result in pixels.

    Returns:
        The image of ``size`` x ``size`` pixels in the same mode.

    Raises:
        ImageError: the enlarged image would have more than ``MAX_PIXELS`` pixels, as that of 60000 x 1 would have.
    """
    image = _halve(image, size)
    width, height = _scaled_size(image.size, size)
    left, top = (width - size) // 2, (height - size) // 2
    cubic = Image.Resampling.BICUBIC
    # One call resizes along x, rounds to bytes, and resizes along y. So do two calls, without most of what is cut off.
    if image.width > image.height:
        narrow = image.resize((width, image.height), cubic).crop((left, 0, left + size, image.height))
        return narrow.resize((size, size), cubic)
    if image.height < 2 * image.width:  # beyond that Pillow 13 may begin with y
        first, last = _rows_used(image.height, height, top, size)
        narrow = image.crop((0, first, image.width, last)).resize((size, last - first), cubic)
        narrow = narrow.crop((0, -first, size, image.height - first))  # the rows that are not used are black
        return narrow.resize((size, height), cubic).crop((0, top, size, top + size))
    return image.resize((width, height), cubic).crop((left, top, left + size, top + size))


def _rows_used(height: int, scaled_height: int, top: int, size: int) -> tuple[int, int]:
    """First and last + 1 of the rows that rows ``top`` ... ``top + size - 1`` of the scaled image are made of."""
    scale = height / scaled_height
    reach = 2 * max(scale, 1) + 1  # the bicubic filter's, and one row for rounding
    return max(0, math.floor(top * scale - reach)), min(height, math.ceil((top + size) * scale + reach))


def center_crop_by_torch(pixels: np.ndarray, size: int) -> np.ndarray:
    """:func:`center_crop` with torch's bicubic filter in place of Pillow's; docs/data.md says how they differ.

    Args:
        pixels: uint8 (height, width) or (height, width, 3), of any height and width; writable, but not written to.
        size: side of the result in pixels.

    Returns:
        uint8 (channels, size, size).

    Raises:
        ImageError: as for :func:`center_crop`.
    """
    if min(pixels.shape[:2]) >= 2 * size:
        pixels = np.array(_halve(Image.fromarray(pixels), size))
    width, height = _scaled_size((pixels.shape[1], pixels.shape[0]), size)
    left, top = (width - size) // 2, (height - size) // 2
    planes = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    scaled = torch.nn.functional.interpolate(planes[None], (height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(scaled[0, :, top : top + size, left : left + size].numpy())


def _halve(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    return image


def _scaled_size(unscaled: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height with the short side at ``size``.

    Raises:
        ImageError: they have more than ``MAX_PIXELS`` pixels.
    """
    scale = size / min(unscaled)
    width, height = (round(side * scale) for side in unscaled)
    if width * height > MAX_PIXELS:
        raise ImageError(f"{unscaled[0]} x {unscaled[1]} pixels enlarged to {_too_large((width, height))}")
    return width, height
