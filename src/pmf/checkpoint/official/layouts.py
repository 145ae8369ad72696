"""Files of weights that carry no config, official ones above all, as our weights; and ours as official ones.

Every tensor is accounted for, by name and shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pmf.checkpoint.official.jax_checkpoint import read_jax, write_jax
from pmf.checkpoint.official.names import JAX, OFFICIAL_NETWORK, OURS, PYTORCH, Layout, unwrapped
from pmf.checkpoint.official.pytorch_file import read_pytorch, write_pytorch
from pmf.checkpoint.places import MANIFEST, list_checkpoints, run_or_checkpoint
from pmf.checkpoint.saved_weights import SavedWeights, recorded_config
from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.distributed.world import ALONE, World
from pmf.errors import UserError
from pmf.files import file_format, file_sha256, printable
from pmf.net.base import BaseNetwork
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import find_architecture
from pmf.tensors import read_safetensors, require_finite, require_same_tensors, tensors_sha256

# The official PyTorch networks store their table of rotations; ours is computed from the sizes.
ROTATIONS = "net.rope_freqs"
# cos and sin of float32 angles up to the grid's side may differ in the last place.
ROTATION_TOLERANCE = 1e-6
# What torch's AveragedModel saves beside the tensors of its module.
COUNT_OF_AVERAGES = "n_averaged"
IS_OURS = "{path}: is ours and carries its config; --config is for official checkpoints and others without one"
NO_IMAGES = "such weights make no images; choose an older checkpoint"


def load_official(
    path: Path,
    config: Config,
    which: str | None = None,
    *,
    key: str | None = None,
    allow_pickle: bool = False,
    world: World = ALONE,
) -> SavedWeights:
    """Weights of an official checkpoint, or of any file with the tensors of the config's network, under our names.

    Called by all processes, and hashed by the main one.

    Args:
        path: a PyTorch or safetensors file, recognised by its content, with official names or ours; or a JAX
            checkpoint or the folder that holds it.
        config: the recipe that the checkpoint was trained with; it says which network, and how to sample.
        which: of a JAX checkpoint, ``online`` or the name of an average; None is what the config samples with.
        key: of a PyTorch file with several sets of weights, which; see :func:`read_pytorch`.
        allow_pickle: see :func:`read_pytorch`.

    Returns:
        The weights, with the v head where the checkpoint has one.

    Raises:
        UserError: nothing there, damaged, names and shapes that are not those of the config's network, or values that
            are not finite.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    kind = _kind(path)
    if key is not None and kind != "pytorch":
        raise UserError(f"{path}: is no PyTorch file, and --key is for those; leave out --key {key}")
    average = (which or config.sampling.ema) if kind == "jax" else None
    if average is not None:
        weights = _from_layout(JAX, read_jax(path, average), config, path)
        digest = world.ask_main(lambda: tensors_sha256(weights))
    else:
        if which is not None:
            several = "" if key else " (--key chooses where there are several)"
            raise UserError(f"{path}: holds one set of weights; leave out --ema {which}{several}")
        if kind == "pytorch":
            tensors = read_pytorch(path, key=key, allow_pickle=allow_pickle)
        else:
            tensors, metadata = read_safetensors(path)
            if recorded_config(metadata, str(path)) is not None:
                raise UserError(IS_OURS.format(path=path))
        weights = _from_names(tensors, config, path)
        digest = world.ask_main(lambda: file_sha256(path))
    source = printable(f"{path.name}{f' {key}' if key else ''} {digest[:16]}")
    return SavedWeights(weights=weights, config=config, source=source, sha256=digest, average=average)


def export_pytorch(path: Path, saved: SavedWeights, *, inference: bool) -> None:
    """Write weights as the official PyTorch network names them, with its table of rotations: one ``.pt`` file.

    Args:
        inference: leave out the v head, as the released files do.
    """
    tensors = _to_layout(PYTORCH, saved, inference)
    write_pytorch(path, tensors | {ROTATIONS: rotation_table(saved.config)})


def export_jax(path: Path, saved: SavedWeights, *, inference: bool) -> None:
    """Write weights as a state of the official JAX code, as the average that the config samples with: a folder.

    Args:
        inference: leave out the v head.
    """
    write_jax(path, _to_layout(JAX, saved, inference), average=saved.config.sampling.ema)


EXPORTS = {"pytorch": export_pytorch, "jax": export_jax}


def rotation_table(config: Config) -> Tensor:
    """(patches, head width / 2) complex64: what the official network multiplies queries and keys of patches with.

    Raises:
        UserError: the model is none of pMF's pixel transformers.
    """
    network = _network_without_values(config)
    if not isinstance(network, PixelTransformer):
        raise UserError(f"model.name is {config.model.name}: the official layouts are for the models of pMF only")
    angles = network.rotation.angles()
    return torch.complex(angles.cos(), angles.sin())


def _kind(path: Path) -> str:
    """``pytorch``, ``safetensors`` or ``jax``, by what stands there.

    Raises:
        UserError: a run or checkpoint folder of ours, or a file of none of these.
    """
    if list_checkpoints(run_or_checkpoint(path)) or (run_or_checkpoint(path) / MANIFEST).exists():
        raise UserError(IS_OURS.format(path=path))
    if path.is_dir():
        return "jax"
    if kind := file_format(path):
        return kind
    with path.open("rb") as file:
        start = file.read(1)
    if start and (0x80 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):  # a mapping, in msgpack
        return "jax"
    return "pytorch"  # whose reader says what it is instead


def _from_names(tensors: Mapping[str, Tensor], config: Config, path: Path) -> dict[str, Tensor]:
    """Tensors of a network under our names, whichever names they have and whatever they are wrapped in."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != COUNT_OF_AVERAGES}
    names = unwrapped(tensors)
    if len(set(names.values())) < len(names):
        raise UserError(f"{path}: holds two networks; without wrappers such as module. their names are the same")
    views = [{short: tensors[name] for name, short in names.items()}]
    if all(name.startswith("net.") for name in views[0]):  # the official wrapper, or one of somebody else's
        views.append({name.removeprefix("net."): tensor for name, tensor in views[0].items()})
    own = _network_without_values(config).state_dict()
    pairs = [(layout, view) for view in views for layout in (PYTORCH, OFFICIAL_NETWORK, OURS)]
    layout, view = max(pairs, key=lambda pair: sum(pair[0].name(name) in pair[1] for name in own))
    for name in (ROTATIONS, ROTATIONS.removeprefix("net.")):
        _check_rotations(view.pop(name, None), config, path)
    return _from_layout(layout, view, config, path)


def _from_layout(layout: Layout, tensors: Mapping[str, Tensor], config: Config, path: Path) -> dict[str, Tensor]:
    """Tensors under our names, after comparing theirs with what the config's network would be there."""
    network = _network_without_values(config)
    own: Mapping[str, Tensor] = network.state_dict()
    if not any(layout.name(name) in tensors for name in own if network.is_training_only(name)):
        own = {name: tensor for name, tensor in own.items() if not network.is_training_only(name)}
    require_same_tensors(
        {layout.name(name): layout.store(name, tensor) for name, tensor in own.items()},
        tensors,
        intro=f"{path}: not the weights of {config.model.name}",
        advice="give the --config of the model that it is",
    )
    require_finite(tensors, intro=str(path), advice=NO_IMAGES)
    return {name: layout.restore(name, tensors[layout.name(name)]) for name in own}


def _to_layout(layout: Layout, saved: SavedWeights, inference: bool) -> dict[str, Tensor]:
    architecture = find_architecture(saved.config.model.name)
    kept = {
        name: tensor
        for name, tensor in saved.weights.items()
        if not (inference and architecture.is_training_only(name))
    }
    require_finite(kept, intro=saved.source, advice=NO_IMAGES)
    return {layout.name(name): layout.store(name, tensor) for name, tensor in kept.items()}


def _network_without_values(config: Config) -> BaseNetwork:
    """The config's network for training, on torch's meta device."""
    with torch.device("meta"):
        return network_of(config)


def _check_rotations(table: Tensor | None, config: Config, path: Path) -> None:
    if table is None:
        return
    own = rotation_table(config)
    if table.shape != own.shape or not bool(((table - own).abs() <= ROTATION_TOLERANCE).all()):
        raise UserError(
            f"{path}: {ROTATIONS} is not the rotation of {config.model.name} at {config.data.image_size} pixels; "
            "give the --config of the model that it is"
        )
