"""A small network of each architecture in float64 with random weights everywhere, and arguments for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from pmf.net.base import BaseNetwork
from pmf.net.diffusion_transformer import DiffusionTransformer
from pmf.net.imf_transformer import ImfTransformer
from pmf.net.interface import Conditions
from pmf.net.pixel_transformer import PixelTransformer

CLASSES = 4
TOKENS = (PixelTransformer, ImfTransformer)
"""Architectures with two heads and conditions as tokens."""
ALL = (*TOKENS, DiffusionTransformer)


def small_network(architecture: type[BaseNetwork], noise: float = 0.3, **changes) -> BaseNetwork:
    """Gates, modulations and output layers start at zero, where little can be seen; here noise is added to all."""
    shape = {"image_size": 8, "patch_size": 2, "channels": 3, "num_classes": CLASSES, "width": 16, "depth": 3}
    heads = {} if architecture is DiffusionTransformer else {"head_depth": 1}
    generator = torch.Generator().manual_seed(0)
    network = architecture(**{**shape, "num_heads": 2, "generator": generator, **heads, **changes}).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=noise)
    return network


def arguments(rows: int = 4) -> tuple[Tensor, Conditions]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)
    t, h, omega, t_min, t_max = torch.rand(5, rows, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES + 1, (rows,), generator=generator)
    return z, Conditions(t=t, h=h, omega=1 + omega, t_min=t_min, t_max=t_max, labels=labels)


def in_float32(parts: Any) -> Any:
    """A dataclass of tensors, in single precision."""
    numbers = {name: part.float() for name, part in vars(parts).items() if part.is_floating_point()}
    return dataclasses.replace(parts, **numbers)
