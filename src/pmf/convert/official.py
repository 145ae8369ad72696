"""Official checkpoints as our weights, and ours as official ones: every tensor accounted for, by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pmf.checkpoint import SavedWeights, tensors_sha256
from pmf.config import Config
from pmf.convert.jax_checkpoint import read_jax, write_jax
from pmf.convert.names import JAX, PYTORCH, Layout
from pmf.convert.pytorch_file import read_pytorch, write_pytorch
from pmf.distributed import ALONE, World
from pmf.errors import UserError
from pmf.files import file_sha256
from pmf.net.layers import Rotation
from pmf.net.sizes import SIZES, create_network
from pmf.strict import require_finite, require_same_tensors

# The official PyTorch networks store their table of rotations; ours is computed from the sizes.
ROTATIONS = "net.rope_freqs"
# cos and sin of float32 angles up to the grid's side may differ in the last place.
ROTATION_TOLERANCE = 1e-6
NO_IMAGES = "such weights make no images; choose an older checkpoint"


def load_official(
    path: Path, config: Config, which: str | None = None, *, allow_pickle: bool = False, world: World = ALONE
) -> SavedWeights:
    """Weights of an official checkpoint under our names; called by all processes, and hashed by the main one.

    Args:
        path: a PyTorch file (``.pt``, ``.pth``), or a JAX checkpoint or the folder that holds it.
        config: the recipe that the checkpoint was trained with; it says which network, and how to sample.
        which: of a JAX checkpoint, ``online`` or the name of an average; None is what the config samples with.
        allow_pickle: see :func:`read_pytorch`.

    Returns:
        The weights, with the v head where the checkpoint has one.

    Raises:
        UserError: nothing there, damaged, names and shapes that are not those of the config's network, or values that
            are not finite.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if path.suffix == ".safetensors" or (path / "checkpoints").is_dir():
        raise UserError(f"{path}: is ours and carries its config; --config is for official checkpoints")
    if path.suffix in (".pt", ".pth", ".zip"):
        if which is not None:
            raise UserError(f"{path}: holds one set of weights; leave out --ema {which}")
        tensors = read_pytorch(path, allow_pickle=allow_pickle)
        _check_rotations(tensors.pop(ROTATIONS, None), config, path)
        weights = _from_layout(PYTORCH, tensors, config, path)
        digest = world.ask_main(lambda: file_sha256(path))
    else:
        weights = _from_layout(JAX, read_jax(path, which or config.sampling.ema), config, path)
        digest = world.ask_main(lambda: tensors_sha256(weights))
    return SavedWeights(weights=weights, config=config, source=f"{path.name} {digest[:16]}", sha256=digest)


def export_pytorch(path: Path, saved: SavedWeights, *, inference: bool) -> None:
    """Write weights as the official PyTorch network names them, with its table of rotations: one ``.pt`` file.

    Args:
        inference: leave out the v head, as the released files do.
    """
    tensors = _to_layout(PYTORCH, saved.weights, saved.source, inference)
    write_pytorch(path, tensors | {ROTATIONS: rotation_table(saved.config)})


def export_jax(path: Path, saved: SavedWeights, *, inference: bool) -> None:
    """Write weights as a state of the official JAX code, as the average that the config samples with: a folder.

    Args:
        inference: leave out the v head.
    """
    write_jax(path, _to_layout(JAX, saved.weights, saved.source, inference), average=saved.config.sampling.ema)


EXPORTS = {"pytorch": export_pytorch, "jax": export_jax}


def rotation_table(config: Config) -> Tensor:
    """(patches, head width / 2) complex64: what the official network multiplies queries and keys of patches with."""
    size = SIZES[config.model.name]
    rotation = Rotation(size.width // size.num_heads, config.data.image_size // size.patch_size, 0)
    return torch.complex(rotation.cos, rotation.sin)


def _from_layout(layout: Layout, tensors: Mapping[str, Tensor], config: Config, path: Path) -> dict[str, Tensor]:
    """Tensors under our names, after comparing theirs with what the config's network would be there."""
    own = _own_tensors(config)
    if not any(layout.name(name) in tensors for name in own if name.startswith("v_")):
        own = {name: tensor for name, tensor in own.items() if not name.startswith("v_")}
    require_same_tensors(
        {layout.name(name): layout.store(name, tensor) for name, tensor in own.items()},
        tensors,
        intro=f"{path}: not the weights of {config.model.name}",
        advice="give the --config of the model that it is",
    )
    require_finite(tensors, intro=str(path), advice=NO_IMAGES)
    return {name: layout.restore(name, tensors[layout.name(name)]) for name in own}


def _to_layout(layout: Layout, weights: Mapping[str, Tensor], where: str, inference: bool) -> dict[str, Tensor]:
    kept = {name: tensor for name, tensor in weights.items() if not (inference and name.startswith("v_"))}
    require_finite(kept, intro=where, advice=NO_IMAGES)
    return {layout.name(name): layout.store(name, tensor) for name, tensor in kept.items()}


def _own_tensors(config: Config) -> dict[str, Tensor]:
    """Our training network's tensors, without values."""
    data = config.data
    with torch.device("meta"):
        network = create_network(
            config.model.name, image_size=data.image_size, num_classes=data.num_classes, channels=data.channels
        )
    return dict(network.state_dict())


def _check_rotations(table: Tensor | None, config: Config, path: Path) -> None:
    if table is None:
        return
    own = rotation_table(config)
    if table.shape != own.shape or not bool(((table - own).abs() <= ROTATION_TOLERANCE).all()):
        raise UserError(
            f"{path}: {ROTATIONS} is not the rotation of {config.model.name} at {config.data.image_size} pixels; "
            "give the --config of the model that it is"
        )
