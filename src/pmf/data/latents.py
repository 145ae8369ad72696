"""Moments of latents: mean and standard deviation of what an autoencoder makes of each image, (8, side / 8, side / 8).

Two layouts: the shards that ``python -m pmf.data.encode`` writes, and the official folders of one file an image.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pmf.data.image_files import LeftOut, is_hidden
from pmf.data.latent_shards import INDEX, REQUEST, read_index, read_shard
from pmf.data.options import DataConfig, network_shape
from pmf.data.source import CorruptImage, Sample, Source, label_error
from pmf.errors import UserError

# To map a file again costs less than a millisecond; a mapped one holds a descriptor.
OPEN_SHARDS = 64
OFFICIAL_NAME = re.compile(r"(\d{8})\.pt")


def open_latents(config: DataConfig, _seed: int = 0) -> Source:
    """The moments in ``data.path``, of either layout.

    Raises:
        UserError: there are none, they are of images of another size or of other classes, or mirrored ones are asked
            for and not there.
    """
    folder = Path(config.path or "")
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder}: data.path {state}; give the folder that python -m pmf.data.encode wrote")
    if (folder / INDEX).exists():
        return LatentShards(folder, config)
    if (folder / REQUEST).exists():
        raise UserError(
            f"{folder}: has no {INDEX} yet, so encoding was interrupted; start the same python -m pmf.data.encode again"
        )
    return OfficialLatents(folder, config)


class LatentShards:
    """The images of our own shards, in the order in which they were encoded; rows are read one by one.

    Raises:
        UserError: see :func:`open_latents`; also for shards that are missing or cut short.
    """

    block_starts = None

    def __init__(self, folder: Path, config: DataConfig) -> None:
        index = read_index(folder)
        if index.image_size != config.image_size:
            raise UserError(
                f"{folder}: was encoded from images of {index.image_size} pixels and data.image_size is "
                f"{config.image_size}; correct it, or encode again"
            )
        if index.num_classes != config.num_classes:
            raise UserError(
                f"{folder}: has {index.num_classes} classes and data.num_classes is {config.num_classes}; correct it"
            )
        if config.horizontal_flip and not index.mirrored:
            raise UserError(
                f"{folder}: holds no moments of mirrored images, which data.horizontal_flip needs; encode with "
                "--mirror, or set it to false"
            )
        for shard in index.shards:
            shard.require_whole(folder)
        # Published autoencoders have one encoder and several decoders, so another name is no mistake in itself.
        made_by = index.autoencoder.get("name")
        self.warnings = (
            []
            if made_by == config.autoencoder
            else [f"{folder}: was encoded by {made_by}, and data.autoencoder, which decodes, is {config.autoencoder}"]
        )
        self.class_names = tuple(index.class_names)
        self._shape = (2 * network_shape(config)[0], *network_shape(config)[1:])
        self._flip = config.horizontal_flip
        # Workers get a copy of this object, so it keeps the labels once, and as an array.
        self._labels = np.array([label for shard in index.shards for label in shard.labels], np.int64)
        self._files = [folder / shard.file for shard in index.shards]
        self._counts = np.array([len(shard.labels) for shard in index.shards], np.int64)
        self._ends = np.cumsum(self._counts)
        wrong = np.flatnonzero((self._labels < 0) | (self._labels >= config.num_classes))
        if len(wrong):
            raise label_error(f"{folder / INDEX}, image {wrong[0]}", int(self._labels[wrong[0]]), config)
        # Opened lazily, so that each worker has its own.
        self._opened: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}

    def __len__(self) -> int:
        return len(self._labels)

    def samples(self, indices: np.ndarray) -> Iterator[Sample]:
        """See :class:`pmf.data.source.Source`."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        for index, number in zip(indices.tolist(), numbers.tolist()):
            shard = self._open(number)
            row = index - int(self._ends[number] - self._counts[number])
            mirrored = shard["mirrored"][row] if self._flip else None
            yield Sample(shard["moments"][row], int(self._labels[index]), mirrored)

    def _open(self, number: int) -> dict[str, Any]:
        if number in self._opened:
            self._opened.move_to_end(number)
        else:
            if len(self._opened) == OPEN_SHARDS:
                self._opened.popitem(last=False)
            shape = (int(self._counts[number]), *self._shape)
            self._opened[number] = read_shard(self._files[number], shape, mirrored=self._flip)
        return self._opened[number]


class OfficialLatents:
    """Files ``00000000.pt``, ``00000001.pt``, ... as the official repositories write them, one an image.

    Each is a dict of ``image``, the moments, and ``label``. Nothing but tensors and plain values is loaded.

    Raises:
        UserError: see :func:`open_latents`; also for numbers that are missing.
    """

    block_starts = None

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.folder = folder
        self.config = config
        names = os.listdir(folder)
        numbers = sorted(int(match[1]) for name in names if (match := OFFICIAL_NAME.fullmatch(name)))
        if not numbers:
            raise UserError(
                f"{folder}: holds neither {INDEX}, which python -m pmf.data.encode writes, nor official latents "
                "(00000000.pt, ...); correct data.path"
            )
        if numbers[-1] != len(numbers) - 1:
            missing = next(number for number, found in enumerate(numbers) if number != found)
            raise UserError(
                f"{folder / official_name(missing)}: this file is missing, and {official_name(numbers[-1])} is there; "
                "copy or encode the set again"
            )
        if config.horizontal_flip:
            raise UserError(
                f"{folder}: official latents hold no moments of mirrored images, which data.horizontal_flip needs; set "
                "it to false"
            )
        self._count = len(numbers)
        left_out = LeftOut()
        left_out.add(
            "other files", [name for name in names if not is_hidden(name) and not OFFICIAL_NAME.fullmatch(name)]
        )
        self.warnings = left_out.warnings(folder)

    def __len__(self) -> int:
        return self._count

    def samples(self, indices: np.ndarray) -> Iterator[Sample | CorruptImage]:
        """See :class:`pmf.data.source.Source`."""
        for index in indices.tolist():
            path = self.folder / official_name(index)
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
            except Exception:  # zipfile's, pickle's, torch's
                yield CorruptImage(str(path), "its file is damaged, or holds more than tensors and plain values")
            else:
                yield self._sample(content, path)

    def _sample(self, content: Any, path: Path) -> Sample:
        moments, label = (content.get("image"), content.get("label")) if isinstance(content, dict) else (None, None)
        if isinstance(label, torch.Tensor) and label.numel() == 1:
            label = label.item()
        if not (isinstance(moments, torch.Tensor) and moments.is_floating_point() and isinstance(label, int)):
            raise UserError(
                f"{path}: is no official latent, a dict of image (8, side, side) and label; correct data.path"
            )
        channels, side, _ = network_shape(self.config)
        if tuple(moments.shape) != (2 * channels, side, side):
            raise UserError(
                f"{path}: has moments of shape {tuple(moments.shape)} and data.image_size {self.config.image_size} "
                f"needs {(2 * channels, side, side)}; correct it, or data.path"
            )
        if not 0 <= label < self.config.num_classes:
            raise label_error(str(path), label, self.config)
        return Sample(moments.float().numpy(), label)


def official_name(number: int) -> str:
    """The file of an image in an official folder."""
    return f"{number:08d}.pt"
