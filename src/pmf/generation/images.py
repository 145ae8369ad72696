"""What turns noise into images: a network, what its objective makes of the network's output, and a codec."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pmf.checkpoint.saved_weights import load_strictly
from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.data.codec import create_codec, in_cache
from pmf.distributed.world import World
from pmf.errors import NotFiniteError
from pmf.flow.objective import create_objective
from pmf.generation.beside import Arriving, Copies, threads_beside
from pmf.generation.noise import NoiseOptions, image_noise, noise_ahead
from pmf.generation.pictures import contact_sheet
from pmf.generation.plan import ImageBatch, SamplingPlan
from pmf.net.interface import Network


@dataclass(frozen=True, kw_only=True)
class _InFlight:
    """A batch that the device may still be making."""

    indices: Sequence[int]
    images: Tensor | None
    """On the device; None: among what arrives."""
    arriving: Arriving
    """Of each image the number of values that are not finite, their sum over the images of all ranks, and images."""


class ImageMaker:
    """Makes the images of any plan with the weights that its network holds.

    Attributes:
        network: on ``device``.
        batch_size: images per forward pass.
        device: where images are made.
        in_flight: batches that the device is given before the host waits for an earlier one. One lets a GPU compute
            while the host works on what it has; a CPU would only be late.
    """

    def __init__(self, network: Network, config: Config, device: torch.device) -> None:
        """For a network of the config's objective and data."""
        self.network = network
        self.batch_size = config.sampling.batch_size
        self.device = device
        self._copies = Copies(device)
        self.in_flight = 1 if self._copies.asynchronous else 0
        self._objective = create_objective(config.objective, num_classes=config.data.num_classes)
        self._codec = create_codec(config.data)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of each image: channels, height, width."""
        return self._codec.image_shape

    def noise(self, plan: SamplingPlan, indices: Sequence[int]) -> Tensor:
        """What the network makes images ``indices`` of a plan of: (len(indices), C, H, W) float32 on the CPU."""
        return image_noise(self._noise_options(plan), indices)

    def make(self, plan: SamplingPlan, indices: Sequence[int], noise: Tensor | None = None) -> Tensor:
        """Images ``indices`` of a plan, at least one.

        Args:
            noise: in place of the plan's, of the shape of :meth:`noise`.

        Returns:
            (len(indices), C, H, W) uint8 on the device.

        Raises:
            NotFiniteError: naming the first image that holds NaN or infinity, which would become black or white pixels.
        """
        images, wrong = self._launch(plan, indices, self.noise(plan, indices) if noise is None else noise)
        if problem := self._problem(plan, indices, wrong):
            raise NotFiniteError(problem)
        return images

    def batches(
        self,
        plan: SamplingPlan,
        world: World,
        own: Sequence[Sequence[int]] | None = None,
        *,
        on_host: bool = False,
        pool: Executor | None = None,
    ) -> Iterator[ImageBatch]:
        """This rank's share of a plan's images; called by all ranks. Noise is drawn while the network computes.

        Args:
            plan: the images.
            world: the processes.
            own: the images of each of this rank's batches, as many batches on every rank, some of them empty perhaps;
                None: as :func:`own_batches` has them.
            on_host: the images are needed on the host and not on the device.
            pool: threads that may draw noise; None: some of its own.

        Raises:
            NotFiniteError: on all ranks, for an image of one, before any image of that batch is given away.
        """
        own = list(own_batches(plan.num_images, self.batch_size, world)) if own is None else own
        with ExitStack() as stack:
            threads = pool or stack.enter_context(threads_beside(self.device, world))
            pinned = self._copies.asynchronous
            noise = noise_ahead(self._noise_options(plan), own, threads, pinned=pinned)
            launched: deque[_InFlight] = deque()
            for indices in own:
                launched.append(self._start(plan, indices, next(noise), world, on_host=on_host))
                if len(launched) > self.in_flight:
                    yield self._finish(plan, launched.popleft(), world)
            while launched:
                yield self._finish(plan, launched.popleft(), world)

    def _noise_options(self, plan: SamplingPlan) -> NoiseOptions:
        scale, kind = self._objective.noise_scale, plan.settings["noise"]
        return NoiseOptions(seed=plan.seed, shape=self._codec.shape, scale=scale, kind=kind)

    def _launch(self, plan: SamplingPlan, indices: Sequence[int], noise: Tensor) -> tuple[Tensor, Tensor]:
        """Have images made, without a wait for a GPU.

        Returns:
            (B, C, H, W) uint8, and (B,) int64, how many values of each image are not finite; both on the device.
        """
        settings = {name: value for name, value in plan.settings.items() if name not in ("noise", "precision")}
        half = plan.settings["precision"] == "bf16"
        labels = self._copies.to_device(torch.tensor([plan.label(index) for index in indices]))
        z = self._copies.to_device(noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            z = self._objective.generate(self.network, z, labels, **settings)
        return self._codec.decode(z), _count_not_finite(z)

    def _start(
        self, plan: SamplingPlan, indices: Sequence[int], noise: Tensor, world: World, *, on_host: bool
    ) -> _InFlight:
        if indices:
            images, wrong = self._launch(plan, indices, noise)
        else:
            images = torch.empty((0, *self.image_shape), dtype=torch.uint8, device=self.device)
            wrong = torch.zeros(0, dtype=torch.int64, device=self.device)
        everywhere = world.maximum(wrong.sum())
        arriving = self._copies.to_host(wrong, everywhere, *([images] if on_host else []))
        return _InFlight(indices=indices, images=None if on_host else images, arriving=arriving)

    def _finish(self, plan: SamplingPlan, batch: _InFlight, world: World) -> ImageBatch:
        """Wait for a batch, on the host alone.

        Raises:
            NotFiniteError: on all ranks, for an image of one.
        """
        wrong, everywhere, *images = batch.arriving.wait()
        if int(everywhere):
            found = [problem for problem in world.gather(self._problem(plan, batch.indices, wrong)) if problem]
            raise NotFiniteError(found[0])
        return ImageBatch(images[0] if batch.images is None else batch.images, list(batch.indices))

    def _problem(self, plan: SamplingPlan, indices: Sequence[int], wrong: Tensor) -> str | None:
        for index, count in zip(indices, wrong.tolist(), strict=True):
            if count:
                return (
                    f"image {index} (class {plan.label(index)}) of {plan.weights}: {count} of its "
                    f"{math.prod(self._codec.shape)} values are not finite; choose an older checkpoint or other "
                    "sampling options"
                )
        return None

    def grid(self, plan: SamplingPlan) -> Tensor:
        """One row per class, for ten classes spread over the plan's, of ten images each.

        Returns:
            One (C, H, W) uint8 picture.

        Raises:
            NotFiniteError: an image holds NaN or infinity.
        """
        classes = plan.labels[:: max(len(plan.labels) // 10, 1)][:10]
        plan = replace(plan, labels=classes, images_in_a_row=1)
        indices = [column * len(classes) + row for row in range(len(classes)) for column in range(10)]
        starts = range(0, len(indices), self.batch_size)
        batches = [self.make(plan, indices[start : start + self.batch_size]) for start in starts]
        return contact_sheet(torch.cat(batches), columns=10)


def own_batches(num_images: int, batch_size: int, world: World) -> Iterator[range]:
    """Indices of this rank's batches: as many on every rank, so the last one may be empty.

    Batch k is images k B ... (k + 1) B - 1, whoever makes it, so that not even the last bit of an image depends on the
    number of ranks or on an interruption. Rank r makes batches r, r + W, ...
    """
    offset = world.rank * batch_size
    for start in range(offset, num_images + offset, world.size * batch_size):
        yield range(start, min(start + batch_size, num_images))


def _count_not_finite(z: Tensor) -> Tensor:
    """(B,) int64, of (B, C, H, W)."""
    # NaN - NaN and infinity - infinity are NaN, which is not 0.
    return torch.cat([(part - part).flatten(1).count_nonzero(1) for part in in_cache(z)])


def inference_network(config: Config, weights: Mapping[str, Tensor], device: torch.device, where: str) -> nn.Module:
    """A network built for inference, with these weights; ``where`` names their source in errors.

    Raises:
        UserError: the weights are those of another network, or not finite.
    """
    network = network_of(config, inference=True)
    load_strictly(network, weights, where)
    return network.to(device).eval()
