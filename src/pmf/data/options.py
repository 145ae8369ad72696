"""The data section."""

from __future__ import annotations

from typing import Annotated, Literal

from pmf.options import Fraction, NonNegative, PathText, Positive, Section
from pmf.tables import Row, one_of

DIGITS = {"channels": 1, "num_classes": 10, "split": "train"}
"""What the embedded digits are."""


# A new kind of data set is a line here: what makes a Source of the data section and the run's seed.
SOURCES: dict[str, Row] = {
    "parquet": "pmf.data.parquet:ParquetSource",
    "imagefolder": "pmf.data.imagefolder:ImageFolderSource",
    "synthetic": "pmf.data.synthetic:SyntheticSource",
    "digits": "pmf.data.digits:open_digits",
}
# Where a kind's samples are not the pixels that the network sees, a line here says what goes between them: what makes a
# pmf.data.codec.Codec of the data section.
CODECS: dict[str, Row] = {}


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


def digits_problems(data: DataConfig) -> list[tuple[str, str]]:
    """What ``data.kind: digits`` cannot have: the key to point at, and what is wrong with it."""
    if data.kind != "digits":
        return []
    wrong = {key: value for key, value in DIGITS.items() if getattr(data, key) != value}
    return [
        (f"data.{key}", f"is {getattr(data, key)}; data.kind digits needs data.{key}: {value}")
        for key, value in wrong.items()
    ]
