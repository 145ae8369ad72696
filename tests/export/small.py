"""Generators that export in seconds: a network of one product, and the architectures with one block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmf.checkpoint.saved_weights import save_weights
from pmf.config.network import network_of
from pmf.config.yaml_file import load_config
from pmf.generator.model import Generator
from pmf.net.base import BaseNetwork
from pmf.net.interface import Conditions, HeadOutputs
from pmf.net.sizes import SIZES, NetworkSize
from tests.launch import ROOT

NOISE_SCALE = 0.5
"""Of :func:`small_generator`: whoever forgets it gets other images."""


class OneProduct(BaseNetwork):
    """u is a linear map of the noisy image, moved by each of the conditions, so little that images keep their greys."""

    def __init__(self, *, image_size: int, channels: int, num_classes: int, **_: Any) -> None:
        super().__init__()
        self.label_embedding = nn.Embedding(num_classes + 1, channels * image_size**2)
        self.map = nn.Linear(channels * image_size**2, channels * image_size**2)

    def forward(self, z: Tensor, conditions: Conditions, heads: str = "u", tangent: None = None) -> HeadOutputs:
        moved = conditions.omega / 20 - conditions.t_min / 5 + conditions.t_max / 5 - conditions.h / 5
        u = self.map(z.flatten(1)) + self.label_embedding(conditions.labels) + moved[:, None]
        return HeadOutputs(u=u.view(z.shape))


class OtherWhenTraced(OneProduct):
    """What a file of it says is not what it says itself."""

    def forward(self, z: Tensor, conditions: Conditions, heads: str = "u", tangent: None = None) -> HeadOutputs:
        outputs = super().forward(z, conditions)
        if torch.compiler.is_exporting():
            outputs.u = outputs.u + 0.02
        return outputs


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    """In the table of sizes while a module's tests run; for the ``conftest.py`` of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "one_product", NetworkSize(OneProduct, patch_size=1))
        patch.setitem(SIZES, "other_when_traced", NetworkSize(OtherWhenTraced, patch_size=1))
        yield


def small_generator(folder: Path, name: str = "one_product") -> Generator:
    """A generator of 8 x 8 digits; its weights are written to ``folder``/NAME.safetensors."""
    return generator_of(folder / f"{name}.safetensors", "digits", name, f"objective.noise_scale={NOISE_SCALE}")


def generator_of(file: Path, recipe: str, name: str, *overrides: str) -> Generator:
    """A generator of a recipe in configs/ with another network and weights, none of them 0, which a file gets."""
    config = load_config(ROOT / "configs" / f"{recipe}.yaml", [f"model.name={name}", "sampling.omega=2", *overrides])
    generator = torch.Generator().manual_seed(0)
    network = network_of(config, generator=generator)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_weights(file, network.state_dict(), config)
    return Generator.from_pretrained(file, device="cpu")
