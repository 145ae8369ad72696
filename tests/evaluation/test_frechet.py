"""The distance against pytorch-fid's formula; moments against numpy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from pmf.distributed.world import ALONE
from pmf.errors import UserError
from pmf.evaluation.frechet import Gaussian, frechet_distance
from pmf.evaluation.moments import FeatureMoments
from tests.evaluation.covariances import GOOD, NO_COVARIANCES


def random_gaussian(seed: int, dimension: int, rank: int, condition: float) -> Gaussian:
    """A covariance of a given rank whose eigenvalues span a factor of ``condition``."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((dimension, dimension)))
    values = np.zeros(dimension)
    values[:rank] = np.logspace(0, -np.log10(condition), rank)
    covariance = (basis * values) @ basis.T
    return Gaussian(torch.from_numpy(rng.standard_normal(dimension)), torch.from_numpy((covariance + covariance.T) / 2))


def distance_by_square_root(a: Gaussian, b: Gaussian) -> float:
    """pytorch-fid's formula: the matrix square root of the product, with its offset of 1e-6 where that fails."""
    first, second = a.covariance.numpy(), b.covariance.numpy()
    with np.errstate(all="ignore"):
        root = scipy.linalg.sqrtm(first @ second)
    if not np.isfinite(root).all():
        offset = np.eye(len(first)) * 1e-6
        root = scipy.linalg.sqrtm((first + offset) @ (second + offset))
    offset = a.mean.numpy() - b.mean.numpy()
    return float(offset @ offset + np.trace(first) + np.trace(second) - 2 * np.trace(root.real))


@pytest.mark.parametrize(
    ("rank", "condition", "tolerance"),
    [
        (100, 1e2, 1e-12),  # measured 3e-16
        (100, 1e12, 1e-8),  # 4e-10: here and below a zero that rounds to 1e-17 adds its root, 3e-9, in either formula
        (60, 1e2, 1e-7),  # 1e-9
        (3, 1.0, 1e-7),  # 2e-9
    ],
    ids=["regular", "near-singular", "singular", "rank 3"],
)
@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning", "ignore:Matrix is singular")
def test_distance_is_that_of_the_matrix_square_root(rank, condition, tolerance):
    for seed in range(3):
        a = random_gaussian(2 * seed, 100, rank, condition)
        b = random_gaussian(2 * seed + 1, 100, 100 if seed == 2 else rank, condition)
        expected = distance_by_square_root(a, b)
        for one, other in ((a, b), (b, a)):
            assert abs(frechet_distance(one, other) - expected) <= tolerance * expected, (seed, expected)


@pytest.mark.parametrize("rank", [100, 60, 1])
def test_distance_to_itself_is_zero_and_known_cases_are_exact(rank):
    a = random_gaussian(0, 100, rank, 1e3)
    # A zero eigenvalue that rounds to 1e-17 adds its root, 3e-9, a hundred times at most; measured 2e-7.
    assert abs(frechet_distance(a, a)) < 1e-6
    shifted = Gaussian(a.mean + 2.0, a.covariance)
    assert abs(frechet_distance(a, shifted) - 400.0) < 1e-6
    # Commuting covariances: the sum of (sqrt a - sqrt b)^2.
    stretched = Gaussian(a.mean, 9 * a.covariance)
    assert abs(frechet_distance(a, stretched) - 4 * float(a.covariance.trace())) < 1e-6


def test_moments_of_batches_are_those_of_the_whole():
    features = 5 + torch.randn(500, 20, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(20.0))
    expected_mean, expected = features.double().mean(0), np.cov(features.double().numpy(), rowvar=False)
    for batch_size in (7, 64, 500):
        moments = FeatureMoments(20, torch.device("cpu"))
        for start in range(0, 500, batch_size):
            moments.update(features[start : start + batch_size])
        gaussian = moments.pooled(ALONE)
        torch.testing.assert_close(gaussian.mean, expected_mean, rtol=1e-12, atol=1e-12)
        # sums in float64 of numbers up to 5e3: 1e-16 * 5e3, over variances of order 1
        torch.testing.assert_close(gaussian.covariance, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(random_gaussian(0, 3, 3, 1.0), random_gaussian(0, 4, 4, 1.0))


@pytest.mark.parametrize("kind", NO_COVARIANCES)
def test_what_is_no_covariance_is_refused(kind):
    covariance, message = NO_COVARIANCES[kind]
    mean = torch.zeros(20, dtype=torch.float64)
    good, bad = Gaussian(mean, GOOD), Gaussian(mean, covariance)
    for one, other, which in ((bad, good, "first"), (good, bad, "second")):
        with pytest.raises(UserError) as error:
            frechet_distance(one, other)
        assert str(error.value).startswith(f"statistics of the {which} set: ")
        assert message in str(error.value)


@pytest.mark.parametrize("rank", [200, 60, 3, 1])
def test_rounding_is_no_reason_to_refuse(rank):
    """Statistics in float32, covariances that are symmetric up to rounding, and images that do not differ."""
    a = random_gaussian(0, 200, rank, 1e3)
    in_float32 = Gaussian(a.mean.float().double(), a.covariance.float().double())
    noise = torch.randn(200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uneven = Gaussian(a.mean, a.covariance + 2**-24 * noise * a.covariance)
    for other in (in_float32, uneven):
        # Of a singular covariance, the root of each eigenvalue that is rounding: 200 of about 2^-24 / sqrt(200) of 1.
        assert frechet_distance(a, other) < 200 * (2**-24 / 14) ** 0.5 + 1e-5
    same = FeatureMoments(20, torch.device("cpu"))
    same.update(torch.full((2000, 20), 123.456))
    gaussian = same.pooled(ALONE)
    assert float(gaussian.covariance.abs().max()) > 0  # nothing but rounding
    assert frechet_distance(gaussian, gaussian) < 1e-6


def test_a_distance_is_never_below_zero():
    distances = []
    for seed in range(60):
        a = random_gaussian(seed, 30, 30 if seed % 2 else 12, 1e3)
        distances.append(frechet_distance(a, a))
    assert all(math.copysign(1, distance) == 1 for distance in distances)  # not -0.0 either
    assert max(distances) < 1e-6
    assert sum(distance == 0 for distance in distances) > 10  # where rounding left less
    huge = Gaussian(torch.full((3,), 1e200, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    with pytest.raises(UserError, match="is not finite: their features are too large for float64"):
        frechet_distance(huge, Gaussian(-huge.mean, huge.covariance))
