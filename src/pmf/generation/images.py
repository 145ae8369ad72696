"""What turns noise into images: a network, what its objective makes of the network's output, and a codec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pmf.checkpoint.saved_weights import load_strictly
from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.data.codec import create_codec
from pmf.distributed.world import World
from pmf.errors import NotFiniteError
from pmf.flow.objective import create_objective
from pmf.generation.pictures import contact_sheet
from pmf.generation.plan import ImageBatch, SamplingPlan, image_noise
from pmf.net.interface import Network


class ImageMaker:
    """Makes the images of any plan with the weights that its network holds.

    Attributes:
        network: on ``device``.
        batch_size: images per forward pass.
    """

    def __init__(self, network: Network, config: Config, device: torch.device) -> None:
        """For a network of the config's objective and data."""
        self.network = network
        self.batch_size = config.sampling.batch_size
        self._device = device
        self._objective = create_objective(config.objective, num_classes=config.data.num_classes)
        self._codec = create_codec(config.data)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of each image: channels, height, width."""
        return self._codec.image_shape

    def make(self, plan: SamplingPlan, indices: Sequence[int]) -> Tensor:
        """Images ``indices`` of a plan, at least one.

        Returns:
            (len(indices), C, H, W) uint8 on the device.

        Raises:
            NotFiniteError: naming the first image that holds NaN or infinity, which would become black or white pixels.
        """
        settings = dict(plan.settings)
        kind = settings.pop("noise")
        noise = image_noise(plan.seed, indices, self._codec.shape, self._objective.noise_scale, kind)
        labels = torch.tensor([plan.label(index) for index in indices], device=self._device)
        z = self._objective.generate(self.network, noise.to(self._device), labels, **settings)
        wrong = (~z.isfinite()).flatten(1).sum(1).tolist()
        for index, count in zip(indices, wrong, strict=True):
            if count:
                raise NotFiniteError(
                    f"image {index} (class {plan.label(index)}) of {plan.weights}: {count} of its {z[0].numel()} "
                    "values are not finite; choose an older checkpoint or other sampling options"
                )
        return self._codec.decode(z)

    def make_together(self, plan: SamplingPlan, indices: Sequence[int], world: World) -> Tensor:
        """:meth:`make` on every rank, for any number of indices.

        Raises:
            NotFiniteError: on all ranks, for an image of one.
        """
        images = torch.empty((0, *self.image_shape), dtype=torch.uint8)
        problem = None
        if indices:
            try:
                images = self.make(plan, indices)
            except NotFiniteError as error:
                problem = str(error)
        for found in world.gather(problem):
            if found:
                raise NotFiniteError(found)
        return images

    def batches(self, plan: SamplingPlan, world: World) -> Iterator[ImageBatch]:
        """This rank's share of a plan's images, see :func:`own_batches`; called by all ranks.

        Raises:
            NotFiniteError: on all ranks, for an image of one.
        """
        for indices in own_batches(plan.num_images, self.batch_size, world):
            yield ImageBatch(self.make_together(plan, indices, world), list(indices))

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


def inference_network(config: Config, weights: Mapping[str, Tensor], device: torch.device, where: str) -> nn.Module:
    """A network built for inference, with these weights; ``where`` names their source in errors.

    Raises:
        UserError: the weights are those of another network, or not finite.
    """
    network = network_of(config, inference=True)
    load_strictly(network, weights, where)
    return network.to(device).eval()
