"""Our scores against torch-fidelity's on the same PNG folders with the same feature network, and against themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")

import torch_fidelity
from torch_fidelity.metric_isc import isc_features_to_metric

from pmf.distributed.world import ALONE
from pmf.errors import UserError
from pmf.evaluation.extractors import load_custom
from pmf.evaluation.image_sets import FlatFolder, stream
from pmf.evaluation.inception_score import InceptionScoreSums, split_of_each_image
from pmf.evaluation.meter import FidelityMeter, compare, reliability_warnings
from pmf.generation.pictures import save_png
from pmf.generation.plan import ImageBatch
from tests.evaluation.networks import NUM_CLASSES, SmallFeatures

NETWORK = "tests.evaluation.networks:create"


class Registered(torch_fidelity.FeatureExtractorBase):
    """The small network as torch-fidelity wants it."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.network = SmallFeatures()

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    def forward(self, images):
        outputs = dict(zip(("features", "logits"), self.network(images)))
        return tuple(outputs[name] for name in self.features_list)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of 1,030 and 1,010 small images: colour gradients with noise, and darker ones with less of it."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 10)
    for name, count, light, spread in (("a", 1030, 160.0, 40.0), ("b", 1010, 140.0, 30.0)):
        (root / name).mkdir()
        directions = torch.randn(count, 3, 2, generator=generator)
        waves = directions[..., :1, None] * ramp[:, None] + directions[..., 1:, None] * ramp
        noise = torch.randn(count, 3, 10, 10, generator=generator)
        images = (light * waves.cos() + spread * noise).clamp(0, 255).round().to(torch.uint8)
        for index, image in enumerate(images):
            save_png(image, root / name / f"{index:06d}.png")
    return root / "a", root / "b"


def measured(folder, batch_size=64, keep_features=False):
    images = FlatFolder(folder)
    extractor = load_custom(NETWORK)
    meter = FidelityMeter(extractor, images.shape, len(images), ALONE, keep_features=keep_features)
    for batch in stream(images, ALONE, batch_size):
        meter.update(batch)
    return meter.result()


def test_all_scores_are_torch_fidelitys(folders):
    if "small" not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor("small", Registered)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        feature_extractor="small",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,  # also: no worker processes
    )
    a, b = (measured(folder, keep_features=True) for folder in folders)
    ours = compare(a, b.gaussian, b.features, kid=True, prc=True)
    # Theirs takes means and kernels in float32; measured: FID 2e-6, KID 1e-6, its deviation (a difference) 3e-5, the
    # Inception score 1e-16.
    close = {"rel": 1e-4, "abs": 0}
    assert ours.fid == pytest.approx(theirs["frechet_inception_distance"], **close)
    assert ours.inception_score.mean == pytest.approx(theirs["inception_score_mean"], **close)
    assert ours.inception_score.std == pytest.approx(theirs["inception_score_std"], **close)
    assert ours.kid.mean == pytest.approx(theirs["kernel_inception_distance_mean"], **close)
    assert ours.kid.std == pytest.approx(theirs["kernel_inception_distance_std"], **close)
    assert ours.precision_recall.precision == pytest.approx(theirs["precision"], **close)
    assert ours.precision_recall.recall == pytest.approx(theirs["recall"], **close)
    # and the comparison means something
    assert ours.fid > 1e-3
    assert ours.inception_score.mean > 1.2
    assert 0.05 < ours.precision_recall.precision < 0.99


def test_a_set_is_at_no_distance_from_itself_whatever_the_batches(folders):
    a = measured(folders[0], 64)
    assert abs(compare(a, a.gaussian, kid=False, prc=False).fid) < 1e-9
    b = measured(folders[1])
    distance = compare(a, b.gaussian, kid=False, prc=False)
    again = compare(measured(folders[0], 7), measured(folders[1], 7).gaussian, kid=False, prc=False)
    # float32 convolutions may sum in another order for another batch size
    assert again.fid == pytest.approx(distance.fid, rel=1e-6)
    assert again.inception_score.mean == pytest.approx(distance.inception_score.mean, rel=1e-6)


def test_the_inception_score_needs_no_order_and_no_logits_kept():
    generator = torch.Generator().manual_seed(0)
    for count in (10, 103, 1000):
        logits = 5 * torch.randn(count, NUM_CLASSES, generator=generator)
        expected = isc_features_to_metric(logits)
        order = torch.randperm(count, generator=generator)
        sums = InceptionScoreSums(count, NUM_CLASSES, torch.device("cpu"))
        for start in range(0, count, 7):
            indices = order[start : start + 7]
            sums.update(logits[indices], indices.tolist())
        score = sums.pooled(ALONE)
        # float64 in both
        assert score.mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
        assert score.std == pytest.approx(expected["inception_score_std"], rel=1e-9, abs=1e-12)
        assert np.ptp(np.bincount(split_of_each_image(count), minlength=10)) <= 1


def test_a_meter_refuses_sets_that_are_not_what_was_announced():
    extractor = load_custom(NETWORK)
    with pytest.raises(UserError, match="9 images are too few to measure; give at least 10"):
        FidelityMeter(extractor, (3, 8, 8), 9, ALONE)
    images = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    for indices in (list(range(11)), [*range(11), 10]):
        meter = FidelityMeter(extractor, (3, 8, 8), 12, ALONE)
        meter.update(ImageBatch(images[: len(indices)], indices))
        with pytest.raises(ValueError, match="of 12"):
            meter.result()


def test_too_few_images_are_told(folders):
    a = measured(folders[0], keep_features=True)
    with pytest.raises(UserError, match="subsets of 1000 images and one set has 50"):
        compare(a, a.gaussian, a.features[:50], kid=True, prc=False)
    with pytest.raises(UserError, match="neighbourhoods of 4 images and one set has 3"):
        compare(a, a.gaussian, a.features[:3], kid=False, prc=True)
    (warning,) = reliability_warnings(1000, 50_000, 2048)
    assert "the measured set has 1000 images and the features 2048 dimensions: its covariance has rank 999" in warning
    assert len(reliability_warnings(1000, 1000, 2048)) == 2
    assert reliability_warnings(50_000, None, 2048) == []
