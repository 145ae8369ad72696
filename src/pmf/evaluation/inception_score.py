"""The Inception score (Salimans et al. 2016, arXiv 1606.03498) from sums, without keeping the class probabilities.

torch-fidelity's protocol: images are shuffled by a seeded permutation of their indices and cut into ten splits; a
split's score is exp(mean KL(p(class | image) || p(class))) with p(class) its own mean; mean and deviation over splits
are reported. The mean divergence is the entropy of the mean minus the mean entropy, so two sums per split are enough,
and neither order nor batches nor processes matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pmf.distributed.world import World

SPLITS = 10
SHUFFLE_SEED = 2020


@dataclass(frozen=True)
class InceptionScore:
    """Mean and population standard deviation over the splits."""

    mean: float
    std: float


class InceptionScoreSums:
    """Sums over this process's images.

    Args:
        num_images: of the whole set, at least ``SPLITS``.
        num_classes: of the classifier.
    """

    def __init__(self, num_images: int, num_classes: int, device: torch.device) -> None:
        self._split_of_image = torch.from_numpy(split_of_each_image(num_images)).to(device)
        self._count = torch.zeros(SPLITS, dtype=torch.float64, device=device)
        self._probabilities = torch.zeros(SPLITS, num_classes, dtype=torch.float64, device=device)
        self._entropies = torch.zeros(SPLITS, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, indices: Sequence[int]) -> None:
        """Add the logits (B, classes) of images ``indices``."""
        splits = self._split_of_image[torch.as_tensor(indices, device=self._split_of_image.device)]
        log_probabilities = logits.double().log_softmax(1)
        probabilities = log_probabilities.exp()
        self._count.index_add_(0, splits, torch.ones_like(probabilities[:, 0]))
        self._probabilities.index_add_(0, splits, probabilities)
        self._entropies.index_add_(0, splits, -(probabilities * log_probabilities).sum(1))

    def pooled(self, world: World) -> InceptionScore:
        """The score of all processes' images, the same on each; called by all of them once, at the end."""
        for part in (self._count, self._probabilities, self._entropies):
            world.add_up(part)
        mean = self._probabilities / self._count[:, None]
        divergence = -torch.xlogy(mean, mean).sum(1) - self._entropies / self._count
        scores = divergence.exp()
        return InceptionScore(mean=float(scores.mean()), std=float(scores.std(correction=0)))


def split_of_each_image(num_images: int) -> np.ndarray:
    """int64 (num_images,): the split that each index falls into under torch-fidelity's shuffle."""
    position = np.empty(num_images, np.int64)
    position[np.random.RandomState(SHUFFLE_SEED).permutation(num_images)] = np.arange(num_images)
    ends = np.arange(1, SPLITS + 1) * num_images // SPLITS
    return np.searchsorted(ends, position, side="right")
