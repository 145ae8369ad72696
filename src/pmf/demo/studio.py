"""What the app shows, without the app: images of choices, strips between them, and training images that are near."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pmf.config.sections import Config
from pmf.data.options import missing_folder, network_shape, pixel_space
from pmf.data.source import create_source, good_samples
from pmf.errors import UserError
from pmf.generator.model import Generator

CHUNK_VALUES = 2**23
"""Of training images that are compared at a time: 64 MB as float64."""


class Studio:
    """One set of weights in memory at a time.

    Attributes:
        model: that makes the images now.
    """

    def __init__(self, load: Callable[[str | None], Generator], ema: str | None = None) -> None:
        """Load.

        Args:
            load: makes a generator of the average of that name; of None, the config's.

        Raises:
            UserError: the weights cannot be loaded.
        """
        self._load = load
        self.model = load(ema)

    def choose_average(self, ema: str) -> None:
        """Make images with another average of the same source.

        Raises:
            UserError: it is not there any more.
        """
        if ema != self.model.average:
            self.model = self._load(ema)

    @property
    def open_options(self) -> tuple[str, ...]:
        """Which of ``omega`` and ``interval`` the method leaves open."""
        fixed = self.model.config.objective.fixed_sampling
        return tuple(name for name in ("omega", "interval") if name not in fixed)


def nearest_images(images: Tensor, config: Config) -> list[tuple[Image.Image, float]]:
    """Of each image the training image that is nearest in pixels.

    Every training image is read, so that it takes as long as an epoch of the loader in one process.

    Args:
        images: (N, C, H, W) uint8, on the CPU.
        config: of the run, whose data set is searched.

    Returns:
        N training images, and their distances: root of the mean squared difference, in grey levels.

    Raises:
        UserError: the data set is not there, or damaged.
    """
    if network_shape(config.data) != pixel_space(config.data):
        raise UserError(f"data.kind is {config.data.kind}, which holds no pixels to look for the nearest images in")
    if problem := missing_folder(config.data):
        raise UserError(f"{problem}; nearest training images need the data set")
    source = create_source(config.data, config.training.seed)
    flat = images.flatten(1).double()
    best = torch.full((len(flat),), torch.inf, dtype=torch.float64)
    found: list[np.ndarray] = [np.empty(0)] * len(flat)
    samples = good_samples(source.samples(np.arange(len(source))))
    rows = max(1, CHUNK_VALUES // flat.shape[1])
    for start in range(0, len(source), rows):
        count = min(rows, len(source) - start)
        chunk = np.stack([next(samples).image for _ in range(count)])
        others = torch.from_numpy(chunk).flatten(1).double()
        distances = torch.cdist(flat, others, compute_mode="donot_use_mm_for_euclid_dist")  # (N, count)
        nearest, places = distances.min(dim=1)
        for row in (nearest < best).nonzero().flatten().tolist():
            found[row] = chunk[places[row]].copy()  # the chunk itself may go
        best = torch.minimum(best, nearest)
    levels = (best / flat.shape[1] ** 0.5).tolist()
    return [(as_picture(image), level) for image, level in zip(found, levels, strict=True)]


def as_picture(image: np.ndarray, least: int = 96) -> Image.Image:
    """An image (C, H, W) uint8 as a picture; a small one is enlarged by a whole factor, to ``least`` pixels or more."""
    picture = Image.fromarray(image.transpose(1, 2, 0).squeeze(-1) if len(image) == 1 else image.transpose(1, 2, 0))
    factor = -(-least // picture.width)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
