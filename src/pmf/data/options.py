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


LATENT_CHANNELS = 4
LATENT_STRIDE = 8
"""Pixels along a side of an image for each value along a side of its latent."""


def latent_space(data: DataConfig) -> tuple[int, int, int]:
    """The network sees an autoencoder's latents."""
    return LATENT_CHANNELS, data.image_size // LATENT_STRIDE, data.image_size // LATENT_STRIDE


@dataclass(frozen=True, kw_only=True)
class LatentNormalization:
    """What makes latents the network's space: (latent - mean) / deviation, channel by channel."""

    mean: tuple[float, float, float, float]
    deviation: tuple[float, float, float, float]


LATENT_NORMALIZATIONS: dict[str, LatentNormalization] = {
    # The autoencoder's scaling factor (MeanFlow, official meanflow.py).
    "meanflow": LatentNormalization(mean=(0.0,) * 4, deviation=(1 / 0.18215,) * 4),
    # Measured over ImageNet's latents (iMF, official utils/vae_util.py).
    "imf": LatentNormalization(
        mean=(0.86488, -0.27787343, 0.21616915, 0.3738409), deviation=(4.85503674, 5.31922414, 3.93725398, 3.9870003)
    ),
}


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
        side_multiple: what ``image_size`` has to be a multiple of.
    """

    source: Row
    codec: Row = "pmf.data.codec:PixelCodec"
    space: Callable[[DataConfig], tuple[int, int, int]] = pixel_space
    folder_holds: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    side_multiple: int = 1


# A new kind of data set is a file with a Source, and a line here.
SOURCES: dict[str, DataKind] = {
    "parquet": DataKind(source="pmf.data.parquet:ParquetSource", folder_holds="data/{split}-*.parquet"),
    "imagefolder": DataKind(source="pmf.data.imagefolder:ImageFolderSource", folder_holds="one folder per class"),
    "synthetic": DataKind(source="pmf.data.synthetic:SyntheticSource"),
    "digits": DataKind(
        source="pmf.data.digits:open_digits", fixed={"channels": 1, "num_classes": 10, "split": "train"}
    ),
    "latents": DataKind(
        source="pmf.data.latents:open_latents",
        codec="pmf.data.latent_codec:LatentCodec",
        space=latent_space,
        folder_holds="what python -m pmf.data.encode wrote, or official files 00000000.pt, ...",
        fixed={"channels": 3},
        side_multiple=LATENT_STRIDE,
    ),
}


class DataConfig(Section):
    """Where images come from and how they are prepared."""

    kind: Annotated[str, one_of(SOURCES)] = "parquet"
    """Hugging Face Parquet, a folder of class folders (of images, where there is one class), generated images, the
    embedded 8x8 digits, or an autoencoder's latents."""
    path: PathText | None = None
    """Folder of the data set. Parquet: the folder that holds data/SPLIT-*.parquet (or the files themselves)."""
    split: str = "train"
    """Which Parquet files, SPLIT-*.parquet, or which folder of class folders, where there is one of that name."""
    image_column: str = "image"
    """Parquet column with the encoded image: a struct {bytes, path} or plain bytes."""
    label_column: str = "label"
    """Parquet column with the integer label."""
    image_size: Positive = 256
    """Side of the square training image, in pixels, after the ADM centre crop."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB; images of any other mode are converted."""
    resampling: Literal["pillow", "torch"] = "pillow"
    """What scales images to their short side: pillow, with the papers' pixels, or torch, which is faster. Evaluation
    always measures with pillow (docs/data.md)."""
    num_classes: Positive = 1000
    """Labels are 0 ... num_classes - 1; num_classes itself is the null label. Set it to what the data has: it is not
    guessed."""
    num_images: Positive = 1024
    """Size of the synthetic set; ignored by the others."""
    horizontal_flip: bool = False
    """Mirror each image with probability one half (a function of seed, epoch and image). Latents: only where the
    mirrored images were encoded too."""
    autoencoder: PathText = "stabilityai/sd-vae-ft-mse"
    """Of latents: diffusers' AutoencoderKL, by its name on the Hugging Face hub or as a local folder."""
    latent_normalization: Annotated[str, one_of(LATENT_NORMALIZATIONS)] = "meanflow"
    """Of latents: by which paper's mean and deviation they become the network's space."""
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
    if data.image_size % kind.side_multiple:
        problem = f"is {data.image_size}; data.kind {data.kind} needs a multiple of {kind.side_multiple}"
        problems.append(("data.image_size", problem))
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
