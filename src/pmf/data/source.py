"""What every data set offers, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pmf.config import DataConfig
from pmf.data.transforms import ImageError, decode
from pmf.errors import UserError


@dataclass
class Sample:
    """One prepared image: uint8 (channels, image_size, image_size), and its label in [0, num_classes)."""

    image: np.ndarray
    label: int


class Source(Protocol):
    """A data set of ``len(source)`` images with random access by index. Picklable: workers get a copy."""

    @property
    def block_starts(self) -> np.ndarray | None:
        """First index of each block that is read as a whole, int64, ascending from 0; None: single reads are cheap."""
        ...

    def __len__(self) -> int: ...

    def samples(self, indices: np.ndarray) -> Iterator[Sample]:
        """The images of ``indices`` (int64 (n,), distinct), lazily and in that order.

        Giving all indices at once lets a source read a block once and keep only what is still to come.

        Raises:
            UserError: naming file and row, for an image that cannot be decoded or a label out of range.
        """
        ...


def prepare(data: bytes, label: int, config: DataConfig, where: str) -> Sample:
    """Decode one image and check its label; ``where`` names the file and row in errors.

    Raises:
        UserError: for an image that cannot be decoded or a label outside [0, num_classes).
    """
    if not 0 <= label < config.num_classes:
        raise UserError(
            f"{where}: label {label} is outside 0 ... {config.num_classes - 1}; "
            "correct data.num_classes or data.label_column, or the file"
        )
    try:
        return Sample(decode(data, config.channels, config.image_size), label)
    except ImageError as error:
        raise UserError(
            f"{where}: this image cannot be decoded: {error}; download the file again or remove the image"
        ) from None


def names_in(names: list[str]) -> str:
    """The first few of a list of names, for error texts."""
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
