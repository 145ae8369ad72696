"""The four measures tell good samples from each way of being bad."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.digits_quality import LIMITS, measure


def test_copies_of_the_training_images_are_found():
    digits = load_digits()
    results = measure(digits.data[:500], digits.target[:500])
    assert results["copies"] == 1.0
    assert results["realism"] == 0.0
    assert results["classifier_on_held_out"] >= LIMITS["classifier_on_held_out"]


def test_one_image_per_class_is_right_but_not_diverse():
    digits = load_digits()
    means = np.stack([digits.data[digits.target == label].mean(0) for label in range(10)])
    labels = np.arange(200) % 10
    jitter = np.random.default_rng(0).normal(0, 0.1, (200, 64))
    results = measure(means[labels] + jitter, labels)
    assert results["accuracy"] == 1.0
    assert results["diversity"] < 0.1 < LIMITS["diversity"]


def test_noise_is_neither_right_nor_realistic():
    generator = np.random.default_rng(0)
    results = measure(generator.uniform(0, 16, (300, 64)), np.arange(300) % 10)
    assert results["accuracy"] < 0.3
    assert results["realism"] > LIMITS["realism"]
