"""The data section, and the table of the kinds of data sets."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pmf.options import Fraction, NonNegative, PathText, Positive, Section
from pmf.tables import Row, one_of


def pixel_space(data: DataConfig) -> tuple[int, int, int]:
    """The network sees the pixels."""
    return data.channels, data.image_size, data.image_size


@dataclass(frozen=True, kw_only=True)
class DataKind:
    """A kind of data set: what opens it, and what can be known of its section before that is imported.

    Attributes:
        source: makes a :class:`pmf.data.source.Source` of the data section and the run's seed.
        codec: makes a :class:`pmf.data.codec.Codec` of the data section: what goes between the samples and the network.
        space: of the data section, the shape of one element of the network's space, (C, H, W); that of the codec.
        folder_holds: what stands in the folder that ``data.path`` has to name, in words in which ``{split}`` is
            ``data.split``; None where the set needs no path.
        fixed: options of the section that can have one value only, by name (a kind of moments wants
            ``horizontal_flip`` false: mirrored moments are not those of the mirrored image).
    """

    source: Row
    codec: Row = "pmf.data.codec:PixelCodec"
    space: Callable[[DataConfig], tuple[int, int, int]] = pixel_space
    folder_holds: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)


# A new kind of data set is a file with a Source, and a line here.
SOURCES: dict[str, DataKind] = {
    "parquet": DataKind(source="pmf.data.parquet:ParquetSource", folder_holds="data/{split}-*.parquet"),
    "imagefolder": DataKind(source="pmf.data.imagefolder:ImageFolderSource", folder_holds="one folder per class"),
    "synthetic": DataKind(source="pmf.data.synthetic:SyntheticSource"),
    "digits": DataKind(
        source="pmf.data.digits:open_digits", fixed={"channels": 1, "num_classes": 10, "split": "train"}
    ),
}


class DataConfig(Section):
    """Where images come from and how they are prepared."""

    kind: Annotated[str, one_of(SOURCES)] = "parquet"
    """Hugging Face Parquet, a folder of class folders, generated images, or the embedded 8x8 digits."""
    path: PathText | None = None
    """Folder of the data set. Parquet: the folder that holds data/SPLIT-*.parquet (or the files themselves)."""
    split: str = "train"
    """Which Parquet files: SPLIT-*.parquet."""
    image_column: str = "image"
    """Parquet column with the encoded image: a struct {bytes, path} or plain bytes."""
    label_column: str = "label"
    """Parquet column with the integer label."""
    image_size: Positive = 256
    """Side of the square training image, in pixels, after the ADM centre crop."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB; images of any other mode are converted."""
    num_classes: Positive = 1000
    """Labels are 0 ... num_classes - 1; num_classes itself is the null label."""
    num_images: Positive = 1024
    """Size of the synthetic set; ignored by the others."""
    horizontal_flip: bool = False
    """Mirror each image with probability one half (a function of seed, epoch and image)."""
    max_corrupt_fraction: Fraction = 0.001
    """Share of the images that may be undecodable, with others standing in for them; more of them end the run."""
    num_workers: NonNegative = 8
    """Decoding processes per rank. The order of samples does not depend on it."""
    prefetch_factor: Positive = 4
    """Micro-batches each worker prepares ahead."""
    pin_memory: bool = True
    """Page-locked batches, for asynchronous copies to a GPU."""


def network_shape(data: DataConfig) -> tuple[int, int, int]:
    """Shape of one element of the network's space: channels, height, width."""
    return SOURCES[data.kind].space(data)


def section_problems(data: DataConfig) -> list[tuple[str, str]]:
    """The options that do not fit ``data.kind``: for each the key to point at, and what is wrong with it."""
    kind = SOURCES[data.kind]
    problems = []
    if kind.folder_holds and not data.path:
        problems.append(("data.path", f"is missing; data.kind {data.kind} needs the folder of the data set"))
    return problems + [
        (f"data.{key}", f"is {getattr(data, key)}; data.kind {data.kind} needs data.{key}: {value}")
        for key, value in kind.fixed.items()
        if getattr(data, key) != value
    ]


def missing_folder(data: DataConfig) -> str | None:
    """The line that says that ``data.path`` does not exist; None where it does, is a pattern, or is not needed."""
    holds = SOURCES[data.kind].folder_holds
    if holds is None or not data.path or os.path.exists(data.path) or glob.has_magic(data.path):
        return None
    return f"{data.path}: data.path does not exist; give the folder that holds {holds.format(split=data.split)}"
