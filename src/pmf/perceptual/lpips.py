"""LPIPS over VGG16 (Zhang et al., arXiv 1801.03924, version 0.1): weighted distances of unit feature vectors."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from pmf.perceptual.weights import at_least_float32

# Channels and number of 3x3 convolutions of VGG16's stages; a 2x2 maximum stands between them.
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# Of images in [-1, 1]: the ImageNet statistics that VGG16 was trained with, as LPIPS rounds them.
MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)
EPSILON = 1e-10

# Published names to ours: torchvision's VGG16, and the lpips package's trunk and heads.
NAMES = (
    (r"net\.slice\d\.(\d+)\.", r"features.\1."),
    (r"lin(\d)\.(?:model\.1\.)?weight", r"heads.\1"),
)


class Lpips(nn.Module):
    """The distance of two batches of images; 0 where they are equal."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for channels, depth in STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in itertools.chain([previous], [channels] * (depth - 1)):
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
            previous = channels
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(torch.ones(1, channels, 1, 1) for channels, _ in STAGES)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Distance of each pair.

        Args:
            prediction: (P, 3, H, W) in [-1, 1]; H and W at least 16.
            image: the same; no gradient flows to it.

        Returns:
            (P,) at least 0, with the published heads.
        """
        with torch.no_grad():
            targets = self.directions(image)
        total = prediction.new_zeros(prediction.shape[0])
        for direction, target, head in zip(self.directions(prediction), targets, self.heads, strict=True):
            total = total + ((direction - target).square() * head).sum(1).mean((1, 2))  # (P, C, h, w) -> (P,)
        return total

    def directions(self, images: Tensor) -> list[Tensor]:
        """Unit feature vectors of every pixel at the end of each stage: five tensors (P, C, h, w)."""
        hidden = (images - self.mean) / self.std
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(unit_vectors(hidden))
            hidden = layer(hidden)
        return [*found, unit_vectors(hidden)]


def unit_vectors(features: Tensor) -> Tensor:
    """Features over their norm along the channels; zero, with a gradient of zero through the norm, where all are 0.

    The root's derivative is infinite at 0 and would make the gradient NaN; a zero vector stays zero whatever divides
    it.
    """
    features = at_least_float32(features)
    squares = features.square().sum(1, keepdim=True)
    norm = torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt()
    return features / (norm + EPSILON)
