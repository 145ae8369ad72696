"""Scores that need every feature vector of both sets; torch-fidelity's own functions with its default settings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from pmf.errors import UserError

SUBSET = 1000
NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """KID: mean and deviation over torch-fidelity's 100 random subsets of 1,000 images."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Shares of images within the other set's neighbourhoods (third nearest neighbour)."""

    precision: float
    recall: float


def kernel_distance(measured: Tensor, reference: Tensor) -> KernelDistance:
    """KID with the polynomial kernel, from features (N, D) and (M, D) float32.

    Raises:
        UserError: a set is smaller than a subset.
    """
    _require(measured, reference, SUBSET, "--kid draws subsets")
    scores = kid_features_to_metric(measured, reference, kid_subset_size=SUBSET, verbose=False)
    return KernelDistance(mean=scores[KEY_METRIC_KID_MEAN], std=scores[KEY_METRIC_KID_STD])


def precision_recall(measured: Tensor, reference: Tensor) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019), from features (N, D) and (M, D) float32.

    Raises:
        UserError: a set is smaller than a neighbourhood.
    """
    _require(measured, reference, NEIGHBOURS + 1, "--precision-recall looks at neighbourhoods")
    scores = prc_features_to_metric(measured, reference, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False)
    return PrecisionRecall(precision=scores[KEY_METRIC_PRECISION], recall=scores[KEY_METRIC_RECALL])


def _require(measured: Tensor, reference: Tensor, least: int, what: str) -> None:
    smaller = min(len(measured), len(reference))
    if smaller < least:
        raise UserError(f"{what} of {least} images and one set has {smaller}; give more images or leave it out")
