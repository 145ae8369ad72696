"""Weights as an object of Python that makes images: what ``pmf.load`` returns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor, nn

from pmf.config.sections import Config
from pmf.data.class_names import check_label, find_class, resolve_names
from pmf.distributed.world import ALONE, World, float32_precision
from pmf.errors import UserError
from pmf.generation.command import PlannedImages
from pmf.generation.plan import SamplingPlan, plan_samples
from pmf.generator.asked import Label, as_output, check_output, one_or_several, whole, with_options
from pmf.generator.between import frames_between
from pmf.generator.opening import Opening, PathLike, open_weights
from pmf.hub.pretrained import Model, training_of, write_pretrained
from pmf.hub.repository import upload
from pmf.options import expand_path


class Generator:
    """A network with weights, and what makes images of it. For one thread at a time.

    Attributes:
        config: that the weights were trained with.
        average: ``online`` or the name of the average that the weights are; None for a file that is what it is.
        averages: what ``ema`` of :func:`pmf.load` can choose from in that source; () for a single file.
        network: built for inference, on ``device``.
        device: where images are made.
    """

    def __init__(self, planned: PlannedImages) -> None:
        """For weights that :func:`pmf.generation.command.plan_images` has loaded; others call :func:`pmf.load`."""
        saved = planned.saved
        self.config = planned.config
        self.average = saved.average
        self.averages = saved.averages
        self._saved = replace(saved, weights={})  # they are the network's now
        self._maker = planned.maker
        network = planned.maker.network
        assert isinstance(network, nn.Module), "inference_network makes modules"
        self.network: nn.Module = network
        self.device = planned.maker.device

    @classmethod
    def from_pretrained(
        cls,
        source: PathLike,
        *,
        ema: str | float | None = None,
        config: PathLike | None = None,
        key: str | None = None,
        autoencoder: PathLike | None = None,
        device: str | torch.device | None = None,
    ) -> Generator:
        """See :func:`pmf.load`, which this is."""
        wanted = Opening(source=source, ema=ema, config=config, key=key, autoencoder=autoencoder, device=device)
        return cls(open_weights(wanted))

    def __repr__(self) -> str:
        return f"<pmf.Generator {self.config.model.name} of {self._saved.source} on {self.device}>"

    @property
    def weights_source(self) -> str:
        """What names the weights in records: folder, file and the start of its sha256."""
        return self._saved.source

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, by label; several names of one have commas between."""
        return resolve_names(self.config.data, self._saved.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of each image: channels, height, width."""
        return self._maker.image_shape

    def save_pretrained(self, folder: PathLike) -> None:
        """Write a folder that :func:`pmf.load`, ``eval.py`` and diffusers read: weights, config and model card.

        Args:
            folder: to be made, or empty.

        Raises:
            UserError: it holds something, or storage fails.
        """
        path = Path(expand_path(os.fspath(folder)))
        write_pretrained(path, self._published(), path.absolute().name)

    def _published(self) -> Model:
        return Model(
            weights=self.network.state_dict(),
            config=self.config,
            class_names=self.class_names,
            training=training_of(self._saved),
        )

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Put what :meth:`save_pretrained` writes into a repository of the Hugging Face hub.

        Args:
            name: owner/name; it is made if it is not there.
            private: make it for its owner alone.

        Returns:
            The address of the commit.

        Raises:
            UserError: not logged in, no rights, or the hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            write_pretrained(folder, self._published(), name)
            return upload(folder, name, private=private)

    @overload
    def generate(
        self,
        labels: Label | Iterable[Label] | None = None,
        *,
        num_images: int | None = None,
        seed: int = 0,
        first: int = 0,
        steps: int | None = None,
        output: Literal["pil"] = "pil",
        **options: Any,
    ) -> list[Image.Image]: ...

    @overload
    def generate(
        self,
        labels: Label | Iterable[Label] | None = None,
        *,
        num_images: int | None = None,
        seed: int = 0,
        first: int = 0,
        steps: int | None = None,
        output: Literal["tensor"],
        **options: Any,
    ) -> Tensor: ...

    def generate(
        self,
        labels: Label | Iterable[Label] | None = None,
        *,
        num_images: int | None = None,
        seed: int = 0,
        first: int = 0,
        steps: int | None = None,
        output: Literal["pil", "tensor"] = "pil",
        **options: Any,
    ) -> list[Image.Image] | Tensor:
        """Images ``first``, ``first + 1``, ... of a set, as ``eval.py sample`` makes them.

        Image i of a set is a function of the weights, the options, the seed and i, and has class
        ``labels[i % len(labels)]``.

        Args:
            labels: classes that are cycled through, by number or name; one class, or several; None: all classes.
            num_images: how many images; None: one for each of ``labels``, or one without labels.
            seed: of the noise.
            first: number of the first image.
            steps: network evaluations per image, ``sampling.num_steps`` of the config.
            output: ``pil``, or ``tensor`` for one uint8 tensor (num_images, C, H, W) on the CPU.
            **options: of the config's ``sampling`` section by their own names: ``omega``, ``interval``, ``sampler``,
                ``noise``, ``precision``, ``batch_size``, ...; what is not given is the config's.

        Raises:
            UserError: an unknown class or option, or a value that cannot be.
            NotFiniteError: an image holds NaN or infinity.
        """
        check_output(output)
        chosen = self._labels(labels)
        count = 1 if labels is None else len(chosen)
        if num_images is not None:
            count = whole("generate: num_images", num_images, 1, "ask for at least 1")
        first = whole("generate: first", first, 0, "give 0 or more")
        config = with_options(self.config, "generate", steps, options)
        plan = self._plan(config, "generate", first + count, seed, chosen)
        size = config.sampling.batch_size
        batches = [range(start, min(start + size, first + count)) for start in range(first, first + count, size)]
        with float32_precision(tf32=config.training.tf32), ThreadPoolExecutor(ALONE.own_cores) as pool:
            made = self._maker.batches(plan, self._world, batches, on_host=True, pool=pool)
            return as_output(torch.cat([batch.images for batch in made]), output)

    @overload
    def interpolate(
        self,
        labels: Label | tuple[Label, Label],
        *,
        seeds: int | tuple[int, int] = (0, 1),
        frames: int = 8,
        steps: int | None = None,
        output: Literal["pil"] = "pil",
        **options: Any,
    ) -> list[Image.Image]: ...

    @overload
    def interpolate(
        self,
        labels: Label | tuple[Label, Label],
        *,
        seeds: int | tuple[int, int] = (0, 1),
        frames: int = 8,
        steps: int | None = None,
        output: Literal["tensor"],
        **options: Any,
    ) -> Tensor: ...

    def interpolate(
        self,
        labels: Label | tuple[Label, Label],
        *,
        seeds: int | tuple[int, int] = (0, 1),
        frames: int = 8,
        steps: int | None = None,
        output: Literal["pil", "tensor"] = "pil",
        **options: Any,
    ) -> list[Image.Image] | Tensor:
        """Images on the way from one to another: noise on a great circle, the embeddings of the classes on a line.

        The first is image 0 of the first class and seed, the last that of the second, as :meth:`generate` makes them.

        Args:
            labels: a pair of classes, or one for all frames.
            seeds: a pair, or one for all frames.
            frames: number of images, both ends among them; at least 2.
            steps, output, **options: see :meth:`generate`.

        Raises:
            UserError: an unknown class or option, or a value that cannot be.
            NotFiniteError: an image holds NaN or infinity.
        """
        check_output(output)
        ends = self._labels(labels)
        pair = one_or_several(seeds)
        if len(ends) > 2 or not 1 <= len(pair) <= 2:
            raise UserError("interpolate: give one or two labels, and one or two seeds")
        frames = whole("interpolate: frames", frames, 2, "give at least 2, the two ends")
        config = with_options(self.config, "interpolate", steps, options)
        first, last = (self._plan(config, "interpolate", frames, seed, ends[:1]) for seed in (pair[0], pair[-1]))
        with float32_precision(tf32=config.training.tf32):
            made = frames_between(self._maker, (first, last), (ends[0], ends[-1]), config.sampling.batch_size)
            return as_output(torch.cat(list(made)), output)

    @property
    def _world(self) -> World:
        return replace(ALONE, device=self.device)

    def _labels(self, labels: Label | Iterable[Label] | None) -> tuple[int, ...]:
        if labels is None:
            return tuple(range(self.config.data.num_classes))
        found = tuple(self.find_class(label) for label in one_or_several(labels))
        if not found:
            raise UserError("labels is empty; give at least one class, or leave it out for all")
        return found

    def find_class(self, label: Label) -> int:
        """The number of a class that is given as its number or as its name.

        Raises:
            UserError: there is no such class, or several have this name.
        """
        if isinstance(label, str):
            return find_class(label, self.class_names)
        return check_label(label, self.config.data.num_classes)

    def _plan(self, config: Config, what: str, num_images: int, seed: Any, labels: tuple[int, ...]) -> SamplingPlan:
        seed = whole(f"{what}: seed", seed, 0, "give 0 or more")
        return plan_samples(config, num_images=num_images, seed=seed, weights=self._saved.source, labels=labels)
