"""From a stream of uint8 images on every process to FID, Inception score, KID, precision and recall.

A :class:`FidelityMeter` is fed on each process and yields a :class:`Measured` set on all of them; :func:`compare` sets
one against a reference. Nothing depends on the order of images, on batches or on the number of processes, but for
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pmf.distributed.world import World
from pmf.errors import NotFiniteError, UserError
from pmf.evaluation.extractors import Extractor, ImageShape
from pmf.evaluation.frechet import Gaussian, frechet_distance
from pmf.evaluation.inception_score import SPLITS, InceptionScore, InceptionScoreSums
from pmf.evaluation.moments import FeatureMoments
from pmf.generation.plan import ImageBatch

if TYPE_CHECKING:
    from pmf.evaluation.sample_scores import KernelDistance, PrecisionRecall


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a set of images came to, the same on every process.

    Attributes:
        inception_score: None where the extractor has no classifier.
        features: (N, D) float32 on the CPU in order of index, where they were kept.
    """

    num_images: int
    gaussian: Gaussian
    inception_score: InceptionScore | None
    features: Tensor | None


class FidelityMeter:
    """Accumulates a set of images; feed each image once, on any process.

    Args:
        extractor: the feature network.
        shape: of each image: channels, height, width.
        num_images: of the whole set over all processes; images are numbered 0 ... num_images - 1.
        world: the processes.
        keep_features: also keep every feature vector (KID, precision and recall need them).

    Raises:
        UserError: fewer images than the Inception score has splits, or an extractor that fails on the shape.
    """

    def __init__(
        self, extractor: Extractor, shape: ImageShape, num_images: int, world: World, *, keep_features: bool = False
    ) -> None:
        if num_images < SPLITS:
            raise UserError(f"{num_images} images are too few to measure; give at least {SPLITS}")
        self.extractor = extractor
        self.world = world
        self.num_images = num_images
        self.sizes = extractor.output_sizes(shape)
        self._moments = FeatureMoments(self.sizes.features, extractor.device)
        self._score = None
        if self.sizes.num_classes is not None:
            self._score = InceptionScoreSums(num_images, self.sizes.num_classes, extractor.device)
        self._kept: list[Tensor] | None = [] if keep_features else None
        self._indices: list[int] = []
        self._not_finite: list[int] = []

    def update(self, batch: ImageBatch) -> None:
        """Add images of this process, if there are any in the batch.

        Raises:
            NotFiniteError: with one process, as for :meth:`result`.
        """
        if not batch.indices:
            return
        features = self.extractor(batch.images)
        self._indices += batch.indices
        finite = features.values.isfinite().all(1)
        if features.logits is not None:
            finite &= features.logits.isfinite().all(1)
        self._not_finite += [index for index, fine in zip(batch.indices, finite.tolist(), strict=True) if not fine]
        if self.world.size == 1:  # several find out together, in the end
            self._require_finite(self._not_finite)
        self._moments.update(features.values)
        if self._score is not None and features.logits is not None:
            self._score.update(features.logits, batch.indices)
        if self._kept is not None:
            self._kept.append(features.values.float().cpu())

    def result(self) -> Measured:
        """Pool all processes; called by all of them, once.

        Raises:
            NotFiniteError: the extractor made NaN or infinity of an image; names the first.
            ValueError: the images fed are not 0 ... num_images - 1, each once.
        """
        self._require_finite([index for rank in self.world.gather(self._not_finite) for index in rank])
        indices = [index for rank in self.world.gather(self._indices) for index in rank]
        if sorted(indices) != list(range(self.num_images)):
            raise ValueError(f"fed {len(indices)} images, {len(set(indices))} of them distinct, of {self.num_images}")
        return Measured(
            num_images=self.num_images,
            gaussian=self._moments.pooled(self.world),
            inception_score=None if self._score is None else self._score.pooled(self.world),
            features=None if self._kept is None else self._gather_features(self._kept, indices),
        )

    def _require_finite(self, wrong: list[int]) -> None:
        if wrong:
            raise NotFiniteError(
                f"extractor {self.extractor.name}: its features of image {min(wrong)} are not finite; see whether its "
                "weights are whole, or choose another --extractor"
            )

    def _gather_features(self, kept: list[Tensor], indices: list[int]) -> Tensor:
        own = torch.cat(kept) if kept else torch.empty(0, self.sizes.features)
        return torch.cat(self.world.gather(own))[torch.tensor(indices).argsort()]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A set of images against a reference; what was not asked for is None.

    Attributes:
        fid: the Fréchet distance of the extractor's features; only with Inception is it the FID of the literature.
    """

    fid: float
    inception_score: InceptionScore | None
    kid: KernelDistance | None = None
    precision_recall: PrecisionRecall | None = None


def compare(
    measured: Measured, reference: Gaussian, reference_features: Tensor | None = None, *, kid: bool, prc: bool
) -> Scores:
    """All scores.

    Args:
        measured: the set in question.
        reference: of the real images.
        reference_features: (M, D) of the real images; for ``kid`` and ``prc``, with ``measured.features``.
        kid: also compute KID.
        prc: also compute precision and recall.

    Raises:
        UserError: too few images for KID or precision and recall, or a covariance that is none.
    """
    kernel, neighbours = None, None
    if kid or prc:
        assert measured.features is not None and reference_features is not None
        # Only here: importing torch-fidelity takes seconds.
        from pmf.evaluation.sample_scores import kernel_distance, precision_recall

        kernel = kernel_distance(measured.features, reference_features) if kid else None
        neighbours = precision_recall(measured.features, reference_features) if prc else None
    return Scores(
        fid=frechet_distance(measured.gaussian, reference),
        inception_score=measured.inception_score,
        kid=kernel,
        precision_recall=neighbours,
    )


def reliability_warnings(num_images: int, reference_images: int | None, dimension: int) -> list[str]:
    """Why a distance between these sets should not be trusted: one line each; empty if nothing speaks against it."""
    counts = {"measured": num_images, "reference": reference_images}
    return [
        f"the {which} set has {count} images and the features {dimension} dimensions: its covariance has rank "
        f"{count - 1} at most, so the distance is biased upwards and cannot be compared with others"
        for which, count in counts.items()
        if count is not None and count <= dimension
    ]
