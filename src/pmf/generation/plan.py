"""Which images: labels, seed and settings; image i is a function of the plan, the weights and i."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmf.config.sampling_options import Use, options_for
from pmf.config.sections import Config
from pmf.randomness import Stream, numpy_generator


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """Everything that decides what image i looks like, besides the weights.

    Attributes:
        labels: classes that are cycled through: image i has labels[i % len(labels)].
        settings: the sampling section's options that images depend on, as plain values (a pair is a list).
        weights: what the weights are, for the record (checkpoint and average).
    """

    num_images: int
    labels: tuple[int, ...]
    seed: int
    settings: Mapping[str, Any]
    weights: str

    def label(self, index: int) -> int:
        """Class of image ``index``."""
        return self.labels[index % len(self.labels)]

    def record(self) -> dict[str, Any]:
        """The plan as plain values, each setting under its own name: what ``sampling.json`` holds."""
        return {
            "num_images": self.num_images,
            "labels": list(self.labels),
            "seed": self.seed,
            **self.settings,
            "weights": self.weights,
        }


def image_noise(seed: int, indices: Sequence[int], shape: tuple[int, int, int], scale: float) -> Tensor:
    """Normal noise of standard deviation ``scale``, one generator per image.

    Returns:
        (len(indices), C, H, W) float32 on the CPU.
    """
    noise = [
        numpy_generator(Stream.IMAGE_NOISE, seed, index).standard_normal(shape, dtype=np.float32) for index in indices
    ]
    return torch.from_numpy(np.stack(noise)) * scale


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
    config: Config, *, num_images: int, seed: int, weights: str, labels: tuple[int, ...] | None = None
) -> SamplingPlan:
    """A plan with the config's sampling settings; ``labels`` None cycles through all classes."""
    sampling = config.sampling
    return SamplingPlan(
        num_images=num_images,
        labels=labels or tuple(range(config.data.num_classes)),
        seed=seed,
        settings=sampling.model_dump(mode="json", include=set(options_for(type(sampling), Use.IMAGES))),
        weights=weights,
    )
