"""The paired random resized crop that both perceptual distances look through (official utils/auxloss_util.py).

A box of random area and aspect ratio is enlarged or reduced to a square by an antialiased cubic kernel. The kernel
reads the full image: near the box's edge it sees pixels outside the box, where cutting first and resizing then would
not. Rows and columns are resampled each by one small matrix, so a crop is two batched matrix products.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

AREA_RANGE = (0.08, 1.0)
"""Share of the image's area that a box covers, uniform."""
ASPECT_RANGE = (3 / 4, 4 / 3)
"""Width over height, uniform in its logarithm."""


@dataclass(frozen=True, kw_only=True)
class CropBoxes:
    """One box per image, in whole pixels; (P,) floating point each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def crop_boxes(uniforms: Tensor, image_height: int, image_width: int) -> CropBoxes:
    """Boxes from uniforms on [0, 1): a side that would exceed the image is cut to it.

    Args:
        uniforms: (P, 4): area, aspect ratio, top, left.
    """
    area, aspect, top, left = uniforms.unbind(1)
    pixels = (AREA_RANGE[0] + area * (AREA_RANGE[1] - AREA_RANGE[0])) * (image_height * image_width)
    low, high = math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])
    ratio = torch.exp(low + aspect * (high - low))
    width = (pixels * ratio).sqrt().round().clamp(1, image_width)
    height = (pixels / ratio).sqrt().round().clamp(1, image_height)
    return CropBoxes(
        top=_start(top, image_height - height),
        left=_start(left, image_width - width),
        height=height,
        width=width,
    )


def _start(uniform: Tensor, last: Tensor) -> Tensor:
    """Uniform on the whole numbers 0 ... last; a product that rounds up to last + 1 stays inside."""
    return torch.minimum((uniform * (last + 1)).floor(), last)


def resample(images: Tensor, boxes: CropBoxes, size: int) -> Tensor:
    """Each image's box as a square, in the images' own precision also under autocast; differentiable.

    Args:
        images: (P, C, H, W).

    Returns:
        (P, C, size, size).
    """
    vertical = resampling_matrix(boxes.top, boxes.height, images.shape[2], size)[:, None]  # (P, 1, size, H)
    horizontal = resampling_matrix(boxes.left, boxes.width, images.shape[3], size)[:, None]  # (P, 1, size, W)
    on_meta = images.device.type == "meta"  # autocast does not know it
    with contextlib.nullcontext() if on_meta else torch.autocast(images.device.type, enabled=False):
        return vertical @ images @ horizontal.mT  # (P, C, size, size)


def resampling_matrix(start: Tensor, extent: Tensor, length: int, size: int) -> Tensor:
    """Weights of every pixel of an axis for every sample of its crop, as ``jax.image.scale_and_translate`` has them.

    Args:
        start, extent: (P,) first pixel and number of pixels of the crop.
        length: pixels of the whole axis.
        size: samples of the crop.

    Returns:
        (P, size, length); each row sums to 1.
    """
    step = (extent / size)[:, None, None]  # input pixels per sample
    samples = torch.arange(size, dtype=start.dtype, device=start.device)[None, :, None]
    pixels = torch.arange(length, dtype=start.dtype, device=start.device)[None, None, :]
    centres = (samples + 0.5) * step + start[:, None, None] - 0.5  # (P, size, 1)
    weights = cubic_kernel((centres - pixels) / step.clamp_min(1))  # (P, size, length), wider where it reduces
    return weights / weights.sum(2, keepdim=True)


def cubic_kernel(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5; zero from 2 on (Keys 1981, equation 15)."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
