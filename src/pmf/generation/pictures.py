"""Images as bytes and files: rounding, PNGs that are complete or absent, contact sheets."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pmf.files import RIGHTS, writing

AVERAGE_FILTER = 3
"""Of PNG: each byte as its difference from the mean of its left and its upper neighbour."""


def save_png(image: Tensor, path: Path) -> None:
    """Write one image, (C, H, W) uint8 with C 1 or 3; whoever sees the name sees the whole file.

    Raises:
        UserError: storage fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(str(path), RIGHTS, again=True):
        temporary.write_bytes(png_bytes(image.cpu().numpy()))
        temporary.replace(path)


def png_bytes(image: np.ndarray) -> bytes:
    """One image as a PNG (W3C's PNG specification, third edition), quickly rather than small.

    Pillow tries every filter for each row, and zlib looks for repetitions that images of a network do not have. One
    filter and runs of equal bytes take a fourth to a tenth of the time, and 0.97 to 1.32 times the space.

    Args:
        image: (C, H, W) uint8, C 1 for grey or 3 for RGB.
    """
    channels, height, width = image.shape
    padded = np.zeros((height + 1, width + 1, channels), np.uint8)  # above and on the left
    padded[1:, 1:] = image.transpose(1, 2, 0)
    rows = padded.reshape(height + 1, -1)
    above, left, here = rows[:-1, channels:], rows[1:, :-channels], rows[1:, channels:]
    filtered = np.full((height, 1 + width * channels), AVERAGE_FILTER, np.uint8)
    np.subtract(here, (above & left) + ((above ^ left) >> 1), out=filtered[:, 1:])  # the mean, without a ninth bit
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    packed = packer.compress(filtered.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))))


def contact_sheet(images: Tensor, columns: int, min_side: int = 32) -> Tensor:
    """Images side by side, row by row, with one pixel between; small ones are enlarged by a whole factor.

    Args:
        images: (N, C, H, W) uint8.
        columns: images per row.
        min_side: smallest side of an image on the sheet, in pixels.

    Returns:
        (C, rows * (side + 1) + 1, columns * (side + 1) + 1) uint8.
    """
    factor = -(-min_side // images.shape[-1])
    large = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    missing = -len(large) % columns
    blank = torch.full((missing, *large.shape[1:]), 255, dtype=torch.uint8, device=large.device)
    framed = torch.nn.functional.pad(torch.cat((large, blank)), (1, 0, 1, 0), value=255)
    sheet = rearrange(framed, "(r k) c h w -> c (r h) (k w)", k=columns)
    return torch.nn.functional.pad(sheet, (0, 1, 0, 1), value=255)
