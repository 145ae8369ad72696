"""Which images: labels, seed and settings; image i is a function of the plan, the weights and i."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pmf.config.sampling_options import Use, options_for
from pmf.config.sections import Config
from pmf.data.codec import create_codec


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """Everything that decides what image i looks like, besides the weights.

    Attributes:
        labels: classes that are cycled through: image i has labels[i // images_in_a_row % len(labels)].
        images_in_a_row: how many images of one class follow each other.
        settings: the sampling section's options that images depend on, as plain values (a pair is a list).
        decoding: how the network's output becomes images, the codec's record.
        weights: what the weights are, for the record (checkpoint and average).
    """

    num_images: int
    labels: tuple[int, ...]
    seed: int
    settings: Mapping[str, Any]
    decoding: Mapping[str, Any]
    weights: str
    images_in_a_row: int = 1

    def label(self, index: int) -> int:
        """Class of image ``index``."""
        return self.labels[index // self.images_in_a_row % len(self.labels)]

    def record(self) -> dict[str, Any]:
        """The plan as plain values: what ``sampling.json`` holds. Settings and decoding stand under their own names."""
        return {
            "num_images": self.num_images,
            "labels": list(self.labels),
            "images_in_a_row": self.images_in_a_row,
            "seed": self.seed,
            **self.settings,
            **self.decoding,
            "weights": self.weights,
        }


@dataclass(frozen=True)
class ImageBatch:
    """Some images of a set.

    Attributes:
        images: (B, C, H, W) uint8.
        indices: which images of the set these are.
    """

    images: Tensor
    indices: list[int]


def plan_samples(
    config: Config,
    *,
    num_images: int,
    seed: int,
    weights: str,
    labels: tuple[int, ...] | None = None,
    images_in_a_row: int = 1,
) -> SamplingPlan:
    """A plan with the config's sampling settings and codec; ``labels`` None cycles through all classes.

    Raises:
        UserError: the config has latents, and their autoencoder cannot be read; it is read once in a process.
    """
    sampling = config.sampling
    return SamplingPlan(
        num_images=num_images,
        labels=labels or tuple(range(config.data.num_classes)),
        images_in_a_row=images_in_a_row,
        seed=seed,
        settings=sampling.model_dump(mode="json", include=set(options_for(type(sampling), Use.IMAGES))),
        decoding=create_codec(config.data).record,
        weights=weights,
    )
