"""The embedded default's feature network: the same everywhere, and a measure of what it should measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pmf.data.source import create_source
from pmf.distributed.world import ALONE
from pmf.evaluation.digit_features import DIGITS, fit_digit_features
from pmf.evaluation.meter import FidelityMeter, Measured, compare
from pmf.generation.plan import ImageBatch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def extractor():
    return fit_digit_features(CPU)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    source = create_source(DIGITS, 0)
    samples = list(source.samples(np.arange(len(source))))
    labels = torch.tensor([sample.label for sample in samples])
    return torch.from_numpy(np.stack([sample.image for sample in samples])), labels


def measured(extractor, images: Tensor) -> Measured:
    meter = FidelityMeter(extractor, (1, 8, 8), len(images), ALONE)
    meter.update(ImageBatch(images, list(range(len(images)))))
    return meter.result()


def to_uint8(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def test_the_fit_is_one_and_draws_nothing_from_the_global_state(extractor):
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert fit_digit_features(CPU).sha256 == extractor.sha256
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_knows_the_digits(extractor, digits):
    images, labels = digits
    features = extractor(images)
    assert features.values.shape == (1797, 64)
    assert float((features.logits.argmax(1) == labels).float().mean()) > 0.99
    score = measured(extractor, images).inception_score
    assert 9.0 < score.mean <= 10.0  # ten classes, nearly even, nearly certain


def test_the_distance_rises_with_every_degradation(extractor, digits):
    images, labels = digits
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    real = measured(extractor, images).gaussian

    def distance(degraded: Tensor) -> float:
        return compare(measured(extractor, degraded), real, kid=False, prc=False).fid

    def blurred(times: int) -> Tensor:
        result = images.float()
        for _ in range(times):
            result = F.avg_pool2d(F.pad(result, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return to_uint8(result)

    series = {
        "noise": [distance(to_uint8(images + deviation * noise)) for deviation in (0, 8, 16, 32, 64, 128)],
        "blur": [distance(blurred(times)) for times in range(4)],
        "classes": [distance(images[labels < kept]) for kept in (10, 9, 8, 6, 4, 2, 1)],
    }
    for name, distances in series.items():
        assert abs(distances[0]) < 1e-6, name
        assert distances == sorted(distances), (name, distances)
    # Half of the digits against the other half: what 900 images leave to chance. Much worse sets stand far above it.
    order = torch.randperm(len(images), generator=generator)
    halves = [measured(extractor, images[part]) for part in (order[:900], order[900:])]
    chance = compare(halves[0], halves[1].gaussian, kid=False, prc=False).fid
    # measured: 1.5 by chance; noise of 128 gives 15, one blur 74, half the classes 20
    for name, distances in series.items():
        assert distances[-1] > 5 * chance, (name, distances, chance)
    assert series["blur"][1] > 5 * chance
    assert distance(images[:1].repeat(100, 1, 1, 1)) > 50 * chance  # one digit, a hundred times
