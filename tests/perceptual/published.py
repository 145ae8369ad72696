"""Random weights for the perceptual networks, written as the files that users name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from torch import Tensor

from pmf.perceptual import lpips
from pmf.perceptual.convnext import ConvNextDistance, create_convnext
from pmf.perceptual.lpips import Lpips


def random_convolution(name: str, parameter: Tensor) -> None:
    """Weights that keep the size of activations through a ReLU network, and biases that are not zero."""
    if name.endswith("weight"):
        parameter.normal_(0, math.sqrt(2 / parameter[0].numel()))
    else:
        parameter.normal_(0, 0.1)


@torch.no_grad()
def random_lpips() -> Lpips:
    """VGG16 with random convolutions and positive heads."""
    torch.manual_seed(0)
    network = Lpips()
    for name, parameter in network.features.named_parameters():
        random_convolution(name, parameter)
    for head in network.heads:
        head.uniform_()
    return network.requires_grad_(False)


@torch.no_grad()
def random_convnext() -> ConvNextDistance:
    """The smallest ConvNeXt-V2, its normalisations moved from their neutral start."""
    torch.manual_seed(0)
    return moved(create_convnext("convnextv2_atto"))


def moved(distance: ConvNextDistance) -> ConvNextDistance:
    """Every weight off its start, and frozen."""
    for parameter in distance.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return distance.requires_grad_(False).eval()


# An eighth of VGG16's channels, for tests that are not about VGG16: its own take seconds a step in float64.
THIN_STAGES = tuple((channels // 8, depth) for channels, depth in lpips.STAGES)


@contextmanager
def thin_lpips() -> Iterator[None]:
    """LPIPS networks that are built meanwhile have an eighth of the channels, ours and those in files alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, "STAGES", THIN_STAGES)
        yield


@torch.no_grad()
def thin_convnext() -> ConvNextDistance:
    """A ConvNeXt-V2 below the smallest, its normalisations moved from their neutral start."""
    torch.manual_seed(0)
    shape = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
    return moved(ConvNextDistance(ConvNeXt(**shape, use_grn=True, ls_init_value=None, num_classes=0)))


def published_lpips(network: Lpips) -> dict[str, Tensor]:
    """Trunk and heads under the names of the files that people pass around."""
    heads = {f"lin{number}.weight": head for number, head in enumerate(network.heads)}
    return {**{f"features.{name}": tensor for name, tensor in network.features.state_dict().items()}, **heads}


def write_weights(folder: Path) -> list[str]:
    """Write both files; returns the overrides that switch both terms on in a run that fits a CPU."""
    save_file(published_lpips(random_lpips()), folder / "lpips.safetensors")
    save_file(random_convnext().network.state_dict(), folder / "convnext.safetensors")
    return [
        "perceptual.lpips=true",
        f"perceptual.lpips_weights={folder / 'lpips.safetensors'}",
        "perceptual.convnext=true",
        "perceptual.convnext_model=convnextv2_atto",
        f"perceptual.convnext_weights={folder / 'convnext.safetensors'}",
        "perceptual.crop_size=32",
    ]
