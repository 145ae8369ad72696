"""Our weights as official files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pmf.checkpoint.official.families import NO_IMAGES, Family, family_of, idle_names, network_without_values
from pmf.checkpoint.official.jax_checkpoint import write_jax
from pmf.checkpoint.official.naming import Layout, within
from pmf.checkpoint.official.pytorch_file import write_pytorch
from pmf.checkpoint.saved_weights import SavedWeights
from pmf.net.base import BaseNetwork
from pmf.tensors import require_finite


def export_pytorch(path: Path, saved: SavedWeights, *, inference: bool) -> None:
    """Write weights as the official PyTorch network names them: one ``.pt`` file.

    Args:
        inference: leave out the v head, as the released files do.

    Raises:
        UserError: there is no official layout of the model's architecture, or a value is not finite.
    """
    family = family_of(saved.config)
    tensors = _to_layout(family, within(family.prefix, family.pytorch), saved, inference)
    if family.computed.exported:
        name = family.prefix + family.computed.name
        tensors[name] = family.computed.compute(network_without_values(saved.config))
    write_pytorch(path, tensors)


def export_jax(path: Path, saved: SavedWeights, *, inference: bool) -> None:
    """Write weights as a state of the official JAX code, as the average that the config samples with: a folder.

    Args:
        inference: leave out the v head.

    Raises:
        UserError: there is no official layout of the model's architecture, or a value is not finite.
    """
    family = family_of(saved.config)
    average = None if family.one_average else saved.config.sampling.ema
    write_jax(path, _to_layout(family, family.jax, saved, inference), average=average)


def _to_layout(family: Family, layout: Layout, saved: SavedWeights, inference: bool) -> dict[str, Tensor]:
    """Our weights under their names; with ``inference`` those that an official inference network has."""
    network = network_without_values(saved.config)
    kept = {
        name: tensor for name, tensor in saved.weights.items() if not (inference and network.is_training_only(name))
    }
    if family.wants_idle and not any(map(network.is_training_only, kept)):
        kept |= {name: saved.weights.get(name, _initial(name, network)) for name in sorted(idle_names(network))}
    require_finite(kept, intro=saved.source, advice=NO_IMAGES)
    return {layout.name(name): layout.store(name, tensor) for name, tensor in kept.items()}


def _initial(name: str, network: BaseNetwork) -> Tensor:
    """The value before training of a tensor of an output layer."""
    return torch.full(network.state_dict()[name].shape, 1.0 if "norm" in name else 0.0)


EXPORTS = {"pytorch": export_pytorch, "jax": export_jax}
