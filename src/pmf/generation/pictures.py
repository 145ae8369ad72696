"""Images as bytes and files: rounding, PNGs that are complete or absent, contact sheets."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from pmf.files import RIGHTS, writing


def save_png(image: Tensor, path: Path) -> None:
    """Write one image, (C, H, W) uint8 with C 1 or 3; whoever sees the name sees the whole file.

    Raises:
        UserError: storage fails.
    """
    array = rearrange(image.cpu(), "c h w -> h w c").numpy()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(str(path), RIGHTS, again=True):
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(temporary, format="png")
        temporary.replace(path)


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
