"""A feature network for the embedded 8 x 8 digits: what Inception is to photographs, in a second and without a file.

A multilayer perceptron is fitted to the real digits' labels; the features are its last hidden layer. Distances between
these features are not Inception FID and cannot be compared with it.

The fit has no chance in it: fixed seed, all images in every step, float64, one thread. Weights are rounded at the end,
far more coarsely than sums of float64 differ between machines, so that the record's sha256 is the same there too.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmf.data.options import DataConfig
from pmf.data.source import create_source, good_samples
from pmf.evaluation.extractors import Extractor, ImageShape, freeze, weights_sha256
from pmf.randomness import Stream, torch_generator

NAME = "digits-mlp"
IMAGE_SHAPE: ImageShape = (1, 8, 8)
DIGITS = DataConfig(kind="digits", image_size=8, channels=1, num_classes=10)

HIDDEN_WIDTHS = (64, 128, 64)
SEED = 0
STEPS = 150
LEARNING_RATE = 0.2
MOMENTUM = 0.9
ROUNDING = 2.0**-12


class DigitFeatures(nn.Module):
    """uint8 (B, 1, 8, 8) to features (B, 64) and logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(HIDDEN_WIDTHS))
        self.classifier = nn.Linear(HIDDEN_WIDTHS[-1], DIGITS.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = images.flatten(1).to(self.classifier.weight.dtype) / 255  # (B, 64)
        for layer in self.hidden:
            features = F.silu(layer(features))
        return features, self.classifier(features)


@torch.enable_grad()
def fit_digit_features(device: torch.device) -> Extractor:
    """Fit the network to the 1,797 real digits on the CPU; leaves the global random state alone.

    Raises:
        UserError: the digits cannot be opened; see :func:`pmf.data.digits.open_digits`.
    """
    source = create_source(DIGITS, SEED)
    samples = list(good_samples(source.samples(np.arange(len(source)))))
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    labels = torch.tensor([sample.label for sample in samples])
    with torch.device("meta"):  # without drawing from the global random state
        network = DigitFeatures().double()
    network.to_empty(device="cpu")
    generator = torch_generator(Stream.WEIGHTS, SEED)
    for parameter in network.parameters():
        deviation = (2 / parameter.shape[-1]) ** 0.5 if parameter.ndim == 2 else 0.0
        nn.init.normal_(parameter, 0.0, deviation, generator)
    parameters = list(network.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other longer than they work
    for _ in range(STEPS):
        loss = F.cross_entropy(network(images)[1], labels)
        for parameter, velocity, slope in zip(parameters, velocities, torch.autograd.grad(loss, parameters)):
            velocity.mul_(MOMENTUM).sub_(slope, alpha=LEARNING_RATE)
            parameter.data.add_(velocity)
    torch.set_num_threads(threads)
    for parameter in parameters:
        parameter.data.div_(ROUNDING).round_().mul_(ROUNDING)
    network.float()
    return freeze(NAME, weights_sha256(network), network, device)
