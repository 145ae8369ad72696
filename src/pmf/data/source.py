"""What every data set offers, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pmf.data.options import SOURCES, DataConfig, section_problems
from pmf.data.transforms import ImageError, decode
from pmf.errors import UserError
from pmf.files import require_reachable
from pmf.tables import resolve

# How far to look for an image that can stand in for a corrupt one.
REPLACEMENT_TRIES = 100


@dataclass
class Sample:
    """One prepared image, and its label.

    Attributes:
        image: uint8 (channels, image_size, image_size), or moments (C, H, W) of any float type.
        label: in [0, num_classes).
        mirrored: what stands for the mirrored image where the values themselves cannot be mirrored, as moments cannot;
            None: the values are mirrored.
    """

    image: np.ndarray
    label: int
    mirrored: np.ndarray | None = None

    def flipped(self) -> np.ndarray:
        """The mirrored image, of the same shape and type."""
        return self.image[:, :, ::-1] if self.mirrored is None else self.mirrored


@dataclass(frozen=True)
class CorruptImage:
    """What stands in place of a sample whose image cannot be decoded.

    Attributes:
        where: file and row.
        reason: why, in part of a line.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: this image cannot be decoded: {self.reason}"


class Source(Protocol):
    """A data set of ``len(source)`` images with random access by index. Picklable: workers get a copy.

    One that knows what its classes are called says so by an attribute ``class_names``, in the order of the labels.
    """

    @property
    def block_starts(self) -> np.ndarray | None:
        """First index of each block that is read as a whole, int64, ascending from 0; None: single reads are cheap."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """Lines, one for each place of the set, that say what was found there and is not used."""
        ...

    def __len__(self) -> int: ...

    def samples(self, indices: np.ndarray) -> Iterator[Sample | CorruptImage]:
        """The images of ``indices`` (int64 (n,), distinct), lazily and in that order.

        Giving all indices at once lets a source read a block once and keep only what is still to come.

        Raises:
            UserError: naming file and row, for a label out of range and for files that cannot be read.
        """
        ...


def class_names(source: Source) -> tuple[str, ...]:
    """What the data set calls its classes, by label; () where it does not say."""
    return tuple(getattr(source, "class_names", ()))


def prepare(data: bytes | None, label: int, config: DataConfig, where: str) -> Sample | CorruptImage:
    """Decode one image and check its label; ``where`` names the file and row.

    Raises:
        UserError: for a label outside [0, num_classes).
    """
    if not 0 <= label < config.num_classes:
        raise label_error(where, label, config)
    if data is None:
        return CorruptImage(where, "there are no image bytes, only null")
    try:
        return Sample(decode(data, config.channels, config.image_size, config.resampling), label)
    except ImageError as error:
        return CorruptImage(where, str(error))


def label_error(where: str, label: int, config: DataConfig) -> UserError:
    """The error for a label out of range; test sets without labels are published with -1."""
    hidden = " (the labels of this split are not published?)" if label == -1 else ""
    return UserError(
        f"{where}: label {label} is outside 0 ... {config.num_classes - 1}{hidden}; "
        "correct data.num_classes, data.label_column or data.split"
    )


def find_replacement(source: Source, index: int, corrupt: CorruptImage) -> Sample:
    """What is trained on in place of ``corrupt``, image ``index``: the next good one of the set, label included.

    A function of the set and the index alone, so that no number of processes and no resume can change it. In Parquet it
    mostly lies in the row group that is being read anyway.

    Raises:
        UserError: none of the next ``REPLACEMENT_TRIES`` can be decoded either.
    """
    nearby = min(len(source) - 1, REPLACEMENT_TRIES)
    for sample in source.samples((index + 1 + np.arange(nearby)) % len(source)):
        if isinstance(sample, Sample):
            return sample
    raise UserError(f"{corrupt}; nor can any of the {nearby} after it; download the files again")


def good_samples(samples: Iterator[Sample | CorruptImage]) -> Iterator[Sample]:
    """The same samples, for uses in which nothing can stand in for an image that cannot be decoded.

    Raises:
        UserError: an image cannot be decoded.
    """
    for sample in samples:
        if isinstance(sample, CorruptImage):
            raise UserError(f"{sample}; download the file again")
        yield sample


def require_first_images(source: Source, count: int = 8) -> None:
    """Decode the first few images, which shows a wrong column or a set of something else at once.

    Raises:
        UserError: none of them can be decoded, or a label is out of range.
    """
    samples = list(source.samples(np.arange(min(count, len(source)))))
    corrupt = [sample for sample in samples if isinstance(sample, CorruptImage)]
    if len(corrupt) == len(samples):
        raise UserError(
            f"{corrupt[0]}; nor can the {len(corrupt) - 1} after it; check data.path (and data.image_column "
            "of Parquet files), or download the files again"
        )


def first_names(names: list[str]) -> str:
    """The first few of a list of names, for error texts."""
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def create_source(config: DataConfig, seed: int) -> Source:
    """Open the data set that ``data.kind`` names; ``seed`` shapes the synthetic one only.

    Raises:
        UserError: one line, for anything missing or unsuitable; see the source's own file.
    """
    for key, problem in section_problems(config):
        raise UserError(f"{key} {problem}")
    if config.path:
        require_reachable(Path(config.path), f"{config.path}: data.path")
    return resolve(SOURCES[config.kind].source)(config, seed)
