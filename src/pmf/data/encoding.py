"""What ``python -m pmf.data.encode`` does: images through the encoder, a shard at a time, on all processes.

A shard is a range of the data set's images, and batches do not cross its ends: its bytes are a function of the request
and of the kind of device, whoever computes it and after whatever interruption.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pmf.data.autoencoder import autoencoder_sha256, encode_moments, load_autoencoder
from pmf.data.codec import to_unit_range
from pmf.data.encoding_parts import Part, read_parts
from pmf.data.image_files import is_hidden
from pmf.data.latent_shards import INDEX, REQUEST, Index, Shard, describe_shard, read_index, shard_name, write_shard
from pmf.data.options import LATENT_CHANNELS, LATENT_STRIDE, DataConfig
from pmf.data.source import class_names, create_source, require_first_images
from pmf.distributed.world import join_world, set_float32_precision
from pmf.errors import UserError
from pmf.files import printable, read_object, write_json, writing

# A process may wait for the others as long as the last shard takes, on a CPU for hours.
PATIENCE = timedelta(days=7)


class Encoding:
    """One request, carried out by all processes together."""

    def __init__(
        self, data: DataConfig, output: Path, *, dtype: str, mirror: bool, batch_size: int, shard_size: int
    ) -> None:
        """Find the processes, open the data set and load the autoencoder.

        Args:
            data: which images, the classes of their labels, and the autoencoder.
            output: folder of the shards; it need not be there.
            dtype: of the moments, ``float16`` or ``float32``.
            mirror: encode the mirrored images too.
            batch_size: images per pass.
            shard_size: images per file.

        Raises:
            UserError: data set or autoencoder cannot be used.
        """
        self.data, self.output, self.dtype, self.mirror = data, output, dtype, mirror
        self.batch_size, self.shard_size = batch_size, shard_size
        self.world = join_world(timeout=PATIENCE)
        set_float32_precision(tf32=False)
        torch.backends.cudnn.deterministic = True
        if self.world.device.type == "cpu":
            torch.set_num_threads(1)  # sums over several threads differ in their last bits with the number of them
        self.source = self.world.together(lambda: create_source(data, seed=0))
        self.world.ask_main(lambda: require_first_images(self.source))
        self.autoencoder = self.world.main_first(lambda: load_autoencoder(data.autoencoder, self.world.device))
        self.max_corrupt = int(data.max_corrupt_fraction * len(self.source))

    def run(self) -> None:
        """Encode what is not there yet and write the index.

        Raises:
            UserError: the folder holds something else, storage fails, an image's file cannot be read, or more of them
                are corrupt than may be.
        """
        world = self.world
        wanted = self._request()
        if world.ask_main(lambda: self._claim_folder(wanted)):
            if world.is_main:
                print(f"{self.output}: is encoded already; nothing to do")
            return
        if world.is_main:
            for warning in self.source.warnings:
                print(f"warning: {warning}")
        numbers = range(-(-len(self.source) // self.shard_size))
        missing = world.ask_main(lambda: [n for n in numbers if not (self.output / shard_name(n)).exists()])
        self._encode(missing)
        own = numbers[world.rank :: world.size]
        described = world.together(lambda: [describe_shard(self.output / shard_name(n)) for n in own])
        gathered = world.gather([(asdict(shard), corrupt) for shard, corrupt in described])
        count = world.ask_main(lambda: self._write_index(gathered, wanted["autoencoder"]))
        if world.is_main:
            print(f"{self.output}: {count:,} images in {len(numbers)} shards")

    def _request(self) -> dict[str, Any]:
        """Everything that the shards are a function of."""
        places = ("kind", "path", "split", "image_column", "label_column")
        preparation = ("image_size", "resampling", "num_classes")
        return {
            **self.data.model_dump(mode="json", include={*places, *preparation}),
            "images_found": len(self.source),
            "autoencoder": {"name": self.data.autoencoder, "sha256": autoencoder_sha256(self.data.autoencoder)},
            "dtype": self.dtype,
            "mirror": self.mirror,
            "batch_size": self.batch_size,
            "shard_size": self.shard_size,
        }

    def _claim_folder(self, wanted: dict[str, Any]) -> bool:
        """Note the request in the folder, or check that it is the folder's.

        Returns:
            Whether everything is there already.
        """
        folder, record = self.output, self.output / REQUEST
        advice = "choose another --output, or remove it"
        wanted = printable(wanted)
        if record.exists():
            # A record without it was written before there was a choice.
            found = {"resampling": DataConfig.model_fields["resampling"].default, **read_object(record, advice)}
            if key := next((key for key in wanted if found.get(key) != wanted[key]), None):
                raise UserError(
                    f"{folder}: was begun with other settings ({key} is {found.get(key)} there, {wanted[key]} here); "
                    f"{advice}"
                )
        elif folder.is_dir() and not all(is_hidden(path.name) for path in folder.iterdir()):
            raise UserError(f"{folder}: is not empty and holds no {REQUEST}; choose another --output")
        else:
            with writing(f"--output {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(record, wanted)
        if not (folder / INDEX).exists():
            return False
        try:
            for shard in read_index(folder).shards:
                shard.require_whole(folder)
        except UserError:
            return False
        return True

    def _encode(self, missing: list[int]) -> None:
        """Write the shards that are missing; each process every size-th of them."""
        world = self.world
        own = missing[world.rank :: world.size]
        shards = itertools.groupby(self._parts(own), key=lambda part: part.shard)
        left = sum(len(self._range(number)) for number in missing)
        done = len(self.source) - left
        # What the ranks have in hand at one time are as many shards; another rank's failure is told after them.
        with tqdm(
            total=len(self.source), initial=done, desc="encoding", unit="image", disable=not world.is_main
        ) as bar:
            for _ in range(-(-len(missing) // world.size)):
                world.together(lambda: self._next_shard(shards, bar))

    def _next_shard(self, shards: Iterator[tuple[int, Iterator[Part]]], bar: Any) -> None:
        """Encode the next of this process's shards, if it has another."""
        number, parts = next(shards, (None, iter(())))
        if number is None:
            return
        try:
            tensors, corrupt = self._tensors(parts, bar)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch-size {self.batch_size}: the GPU's memory does not hold so many images; lower it, and remove "
                f"{self.output} or choose another --output, for a folder keeps its batch size"
            ) from None
        with writing(f"--output {self.output}", again=True):
            write_shard(self.output / shard_name(number), tensors, corrupt)

    def _tensors(self, parts: Iterator[Part], bar: Any) -> tuple[dict[str, Tensor], list[str]]:
        """What a shard of these batches holds, on the CPU, and its images that could not be decoded."""
        tensors: dict[str, list[Tensor]] = {"moments": [], "labels": []}
        if self.mirror:
            tensors["mirrored"] = []
        corrupt: list[str] = []
        for part in parts:
            if part.error:
                raise part.error
            for image in part.corrupt:
                tqdm.write(f"warning: {image}; it is left out")
            corrupt += part.corrupt
            self._require_few(corrupt)
            images = to_unit_range(part.images.to(self.world.device))
            tensors["moments"].append(self._moments(images, part))
            tensors["labels"].append(part.labels)
            if self.mirror:
                tensors["mirrored"].append(self._moments(images.flip(-1), part))
            bar.update(min((len(part.labels) + len(part.corrupt)) * self.world.size, bar.total - bar.n))
        return {name: torch.cat(found) for name, found in tensors.items()}, corrupt

    def _moments(self, images: Tensor, part: Part) -> Tensor:
        """(B, 8, h, w) on the CPU, as they are stored."""
        if not len(images):
            side = self.data.image_size // LATENT_STRIDE
            return torch.empty((0, 2 * LATENT_CHANNELS, side, side), dtype=getattr(torch, self.dtype))
        moments = encode_moments(self.autoencoder, images).to(getattr(torch, self.dtype)).cpu()
        if not bool(moments.isfinite().all()):
            raise UserError(
                f"shard {part.shard}: moments are not finite in {self.dtype}; use --dtype float32, or another "
                "autoencoder"
            )
        return moments

    def _require_few(self, corrupt: list[str]) -> None:
        if len(corrupt) > self.max_corrupt:
            raise UserError(
                f"{corrupt[-1]}; {len(corrupt)} images are corrupt and --max-corrupt-fraction allows "
                f"{self.max_corrupt} of {len(self.source)}; download the files again or raise it"
            )

    def _range(self, number: int) -> range:
        """The images of a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, len(self.source)))

    def _parts(self, numbers: list[int]) -> Iterator[Part]:
        """The batches of these shards, in order."""
        batches = [
            (number, np.arange(start, min(start + self.batch_size, self._range(number).stop)))
            for number in numbers
            for start in self._range(number)[:: self.batch_size]
        ]
        return read_parts(self.source, batches, self.data.num_workers)

    def _write_index(self, gathered: list[list[Any]], autoencoder: dict[str, str]) -> int:
        """Write the index of all shards; returns the number of images."""
        described = sorted((entry for of_rank in gathered for entry in of_rank), key=lambda entry: entry[0]["file"])
        corrupt = [name for _, names in described for name in names]
        self._require_few(corrupt)
        index = Index(
            image_size=self.data.image_size,
            num_classes=self.data.num_classes,
            mirrored=self.mirror,
            dtype=self.dtype,
            autoencoder=autoencoder,
            num_images=sum(len(shard["labels"]) for shard, _ in described),
            corrupt=corrupt,
            shards=[Shard(**shard) for shard, _ in described],
            class_names=list(class_names(self.source)),
        )
        with writing(f"--output {self.output}", again=True):
            write_json(self.output / INDEX, asdict(index))
            for left_over in self.output.glob(".incomplete_*"):  # of processes that were killed
                left_over.unlink(missing_ok=True)
        return index.num_images
