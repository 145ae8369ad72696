"""Are the samples of the embedded run good? python benchmarks/digits_quality.py SAMPLES_FOLDER [--json OUT]

Four measures against scikit-learn's real digits, each with its limit:

accuracy     share of samples to which a support vector classifier, trained on real digits, gives the intended label
diversity    mean pairwise L2 distance within a class, relative to real digits
copies       share of samples closer to a real digit than half the median nearest-neighbour distance among real ones
realism      median distance to the nearest real digit, relative to that among real digits
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

LIMITS = {"classifier_on_held_out": 0.97, "accuracy": 0.95, "diversity": 0.6, "copies": 0.05, "realism": 1.25}
AT_MOST = {"copies", "realism"}


def read_samples(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 64) in [0, 16], as scikit-learn counts them, and labels (N,)."""
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    pixels = np.stack([np.asarray(Image.open(folder / row["file"])).reshape(-1) for row in rows])
    return pixels * (16 / 255), np.array([int(row["label"]) for row in rows])


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """L2 distances, (len(a), len(b))."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def within_class_distance(pixels: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the mean distance between two different images of the class."""
    means = []
    for label in np.unique(labels):
        own = pixels[labels == label]
        means.append(distances(own, own).sum() / (len(own) * (len(own) - 1)))
    return float(np.mean(means))


def measure(samples: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All measures; see the module."""
    digits = load_digits()
    real, real_labels = digits.data, digits.target
    train_x, test_x, train_y, test_y = train_test_split(real, real_labels, test_size=0.2, shuffle=True, random_state=0)
    classifier = SVC().fit(train_x, train_y)
    among_real = distances(real, real)
    np.fill_diagonal(among_real, np.inf)
    typical = float(np.median(among_real.min(1)))
    nearest = distances(samples, real).min(1)
    return {
        "classifier_on_held_out": float(classifier.score(test_x, test_y)),
        "accuracy": float((classifier.predict(samples) == labels).mean()),
        "diversity": within_class_distance(samples, labels) / within_class_distance(real, real_labels),
        "copies": float((nearest < 0.5 * typical).mean()),
        "realism": float(np.median(nearest)) / typical,
    }


def main() -> None:
    """Measure, print, and exit with status 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    samples, labels = read_samples(arguments.folder)
    results = measure(samples, labels)
    good = {
        name: value <= LIMITS[name] if name in AT_MOST else value >= LIMITS[name] for name, value in results.items()
    }
    print(f"{len(samples)} samples")
    for name, value in results.items():
        sign = "<=" if name in AT_MOST else ">="
        print(f"{name:24s}{value:8.4f}   {sign} {LIMITS[name]:<6} {'ok' if good[name] else 'MISSED'}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"num_samples": len(samples), **results}, indent=1))
    sys.exit(0 if all(good.values()) else 1)


if __name__ == "__main__":
    main()
