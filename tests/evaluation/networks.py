"""A small seeded feature network, for the tests: as a user's extractor by Python path, and for torch-fidelity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_FEATURES = 16
NUM_CLASSES = 12


class SmallFeatures(nn.Module):
    """uint8 (B, 3, H, W) to features (B, 16) and logits (B, 12)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(8, 3, 3, 3, generator=generator) / 3)
        self.second = nn.Parameter(torch.randn(NUM_FEATURES, 8, 3, 3, generator=generator) / 8)
        self.classifier = nn.Parameter(3 * torch.randn(NUM_CLASSES, NUM_FEATURES, generator=generator))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(nn.functional.conv2d(images.float() / 127.5 - 1, self.first, padding=1))
        grid = torch.relu(nn.functional.conv2d(hidden, self.second))
        # The mean hardly differs between images; a single place does, and makes sure of its class.
        return grid.mean((2, 3)), grid[:, :, 3, 3] @ self.classifier.T


def create() -> nn.Module:
    """What ``tests.evaluation.networks:create`` names."""
    return SmallFeatures()


def not_a_network() -> int:
    """What an extractor must not be."""
    return 3


class OneOutput(nn.Module):
    """Features without a classifier."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


class WrongOutput(nn.Module):
    """Features of another shape than (B, D)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float()


class Standardised(nn.Module):
    """Features that exist for no image of one colour: each is divided by its standard deviation."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float().flatten(1)
        return (pixels / pixels.std(1, keepdim=True))[:, :3]


def create_other() -> nn.Module:
    """The same network with other weights."""
    network = SmallFeatures()
    network.second.data.neg_()
    return network
