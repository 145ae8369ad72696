"""The format of encoded data sets: what the folder holds, how it is written and read.

encoding.json           what was asked for, written first
latents-00000.safetensors ...
                        ``moments`` (n, 8, h, w) float16 or float32: means, then standard deviations; ``mirrored``,
                        the same of the mirrored images, where asked for; ``labels`` (n,) int64
index.json              written last: image_size, num_classes, class_names, mirrored, dtype, autoencoder, num_images,
                        the images that could not be decoded, and of each shard file, bytes, sha256 and labels
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pmf.errors import UserError
from pmf.files import complete_or_absent, file_sha256, printable, read_object
from pmf.tensors import open_safetensors, save_safetensors

REQUEST = "encoding.json"
INDEX = "index.json"
AGAIN = "copy it again, or remove it and start the same python -m pmf.data.encode again"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of an encoded set, as the index describes it.

    Attributes:
        file: its name.
        bytes: its size.
        labels: of its images.
    """

    file: str
    bytes: int
    sha256: str
    labels: list[int]

    def require_whole(self, folder: Path) -> None:
        """The file is there, with the size that it had when it was written.

        Raises:
            UserError: it is not.
        """
        path = folder / self.file
        if not path.is_file():
            raise UserError(f"{path}: this shard is missing; {AGAIN}")
        if (size := path.stat().st_size) != self.bytes:
            raise UserError(f"{path}: this shard has {size} bytes instead of {self.bytes}; {AGAIN}")


@dataclass(frozen=True, kw_only=True)
class Index:
    """An encoded set.

    Attributes:
        image_size: side of the images, in pixels.
        mirrored: whether the mirrored images were encoded too.
        autoencoder: ``name`` and ``sha256`` of its weights.
        num_images: in all shards.
        corrupt: images that could not be decoded, so that no shard has them: where, and why.
        class_names: what the images' data set calls the classes, by label; empty where it does not say.
    """

    image_size: int
    num_classes: int
    mirrored: bool
    dtype: str
    autoencoder: dict[str, str]
    num_images: int
    corrupt: list[str]
    shards: list[Shard]
    class_names: list[str] = field(default_factory=list)


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"latents-{number:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, Tensor], corrupt: list[str]) -> None:
    """Write a shard, complete or absent; the same contents are the same bytes.

    Raises:
        OSError: storage fails.
    """
    # Ranks that outlived a killed launcher may still be writing it.
    with complete_or_absent(path, by_several=True) as temporary:
        # One text only: of several, safetensors keeps no order.
        save_safetensors(tensors, temporary, {"corrupt": json.dumps(printable(corrupt))})


def describe_shard(path: Path) -> tuple[Shard, list[str]]:
    """A shard as an index has it, and its images that could not be decoded; the file is read once.

    Raises:
        UserError: it is damaged.
    """
    try:
        tensors, texts = open_safetensors(path)
        stored, corrupt = tensors["labels"], json.loads(texts["corrupt"])
        labels = stored[:].tolist() if stored.get_shape() != [0] else []  # of an empty one, nothing can be asked
    except (UserError, KeyError, ValueError) as error:
        raise UserError(f"{path}: this shard is damaged ({error}); {AGAIN}") from None
    shard = Shard(file=path.name, bytes=path.stat().st_size, sha256=file_sha256(path), labels=labels)
    return shard, corrupt


def read_index(folder: Path) -> Index:
    """The index of a folder.

    Raises:
        UserError: it cannot be read, is none, or contradicts itself.
    """
    path = folder / INDEX
    found = read_object(path, AGAIN)
    try:
        shards = [Shard(**shard) for shard in found["shards"]]
        index = Index(**{**found, "shards": shards})
        plain = all(isinstance(shard.file, str) and set(map(type, shard.labels)) <= {int} for shard in shards)
        plain &= isinstance(index.autoencoder, dict)
    except (KeyError, TypeError):
        plain = False
    if not plain:
        raise UserError(f"{path}: is no index of latents; {AGAIN}")
    if sum(len(shard.labels) for shard in index.shards) != index.num_images:
        raise UserError(f"{path}: its shards hold other than {index.num_images} images; {AGAIN}")
    if not index.num_images:
        raise UserError(f"{path}: names no images; {AGAIN}")
    return index


def read_shard(path: Path, shape: tuple[int, ...], *, mirrored: bool) -> dict[str, Any]:
    """The tensors of a shard; see :func:`pmf.tensors.open_safetensors`.

    Args:
        shape: of the moments that the index promises, (n, 8, h, w).
        mirrored: those of mirrored images are needed too.

    Raises:
        UserError: it is damaged, or another than the index describes.
    """
    try:
        tensors, _ = open_safetensors(path)
    except UserError as error:
        raise UserError(f"{error}; {AGAIN}") from None
    for name in ("moments", "mirrored") if mirrored else ("moments",):
        found = tensors[name].get_shape() if name in tensors else None
        if found != list(shape):
            raise UserError(f"{path}: its {name} have shape {found} instead of {list(shape)}; {AGAIN}")
    return tensors
