"""Files of weights that carry no config, official ones above all, as our weights.

Every tensor is accounted for, by name and shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pmf.checkpoint.official.families import (
    FAMILIES,
    NET,
    NO_IMAGES,
    Family,
    family_of,
    idle_names,
    network_without_values,
)
from pmf.checkpoint.official.jax_checkpoint import read_jax
from pmf.checkpoint.official.naming import OURS, Layout, unwrapped, within
from pmf.checkpoint.official.pytorch_file import read_pytorch
from pmf.checkpoint.places import MANIFEST, list_checkpoints, run_or_checkpoint
from pmf.checkpoint.saved_weights import SavedWeights, recorded_config
from pmf.config.sections import Config
from pmf.distributed.world import ALONE, World
from pmf.errors import UserError
from pmf.files import file_format, file_sha256, printable
from pmf.net.base import BaseNetwork
from pmf.tensors import read_safetensors, require_finite, require_same_tensors, tensors_sha256

ONE_AVERAGE = "0.9999"
"""The decay of the official average where there is one."""
# Names that only networks of JiT have (LTH14/JiT), which FD-Loss publishes beside those of pMF and iMF.
OF_JIT = re.compile(r"(^|\.)(in_context_posemb$|mlp\.w12\.)")
# What torch's AveragedModel saves beside the tensors of its module.
COUNT_OF_AVERAGES = "n_averaged"
IS_OURS = "{path}: is ours and carries its config; --config is for official checkpoints and others without one"


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
    network = network_without_values(config)
    average = (which or config.sampling.ema) if kind == "jax" else None
    if average is not None:
        layout = family_of(config).jax
        weights = _from_layout(layout, read_jax(path, average, one=_name_of_one(config)), network, config, path)
        digest = world.ask_main(lambda: tensors_sha256(weights))
    else:
        if kind == "pytorch":
            tensors = read_pytorch(path, key=key, allow_pickle=allow_pickle)
        else:
            tensors, metadata = read_safetensors(path)
            if recorded_config(metadata, str(path)) is not None:
                raise UserError(IS_OURS.format(path=path))
        if which is not None:
            place = f" under {key!r}" if key else ""
            raise UserError(f"{path}: holds one set of weights{place}; leave out --ema {which}")
        weights = _from_names(tensors, network, config, path)
        digest = world.ask_main(lambda: file_sha256(path))
    source = printable(f"{path.name}{f' {key}' if key else ''} {digest[:16]}")
    return SavedWeights(weights=weights, config=config, source=source, sha256=digest, average=average)


def _name_of_one(config: Config) -> str:
    """What the only average of a JAX state is called: a state does not say with which decay it was made."""
    return ONE_AVERAGE if config.sampling.ema == "online" else config.sampling.ema


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


def _from_names(tensors: Mapping[str, Tensor], network: BaseNetwork, config: Config, path: Path) -> dict[str, Tensor]:
    """Tensors of a network under our names, whichever names they have and whatever they are wrapped in."""
    own = network.state_dict()
    jit = next(filter(OF_JIT.search, tensors), None)
    if jit is not None and not any(map(OF_JIT.search, own)):
        raise UserError(f"{path}: holds a JiT network ({jit}); what can be read are networks of pMF, iMF and MeanFlow")
    tensors = {name: tensor for name, tensor in tensors.items() if name != COUNT_OF_AVERAGES}
    names = unwrapped(tensors)
    if len(set(names.values())) < len(names):
        raise UserError(f"{path}: holds two networks; without wrappers such as module. their names are the same")
    views = [{short: tensors[name] for name, short in names.items()}]
    if all(name.startswith(NET) for name in views[0]):  # the official wrapper, or one of somebody else's
        views.append({name.removeprefix(NET): tensor for name, tensor in views[0].items()})
    family = FAMILIES.get(type(network))
    layouts = [OURS]
    if family is not None:
        bare = (family.pytorch, *family.others)
        layouts = [*(within(NET, layout) for layout in bare), *bare, OURS]
    pairs = [(layout, view) for view in views for layout in layouts]
    layout, view = max(pairs, key=lambda pair: sum(pair[0].name(name) in pair[1] for name in own))
    if family is not None:
        _drop_computed(view, family, network, config, path)
    return _from_layout(layout, view, network, config, path)


def _from_layout(
    layout: Layout, tensors: Mapping[str, Tensor], network: BaseNetwork, config: Config, path: Path
) -> dict[str, Tensor]:
    """Tensors under our names, after comparing theirs with what the config's network would be there."""
    kept: Mapping[str, Tensor] = network.state_dict()
    checked = kept
    present = {name for name in kept if network.is_training_only(name) and layout.name(name) in tensors}
    idle = idle_names(network)
    if not present or present == idle:
        kept = {name: tensor for name, tensor in kept.items() if not network.is_training_only(name)}
        checked = {name: tensor for name, tensor in checked.items() if name in kept or name in present}
    require_same_tensors(
        {layout.name(name): layout.store(name, tensor) for name, tensor in checked.items()},
        tensors,
        intro=f"{path}: not the weights of {config.model.name}",
        advice="give the --config of the model that it is",
    )
    require_finite(tensors, intro=str(path), advice=NO_IMAGES)
    return {name: layout.restore(name, tensors[layout.name(name)]) for name in kept}


def _drop_computed(view: dict[str, Tensor], family: Family, network: BaseNetwork, config: Config, path: Path) -> None:
    """Take what the network computes out of a file's tensors, if it is there and as computed."""
    computed = family.computed
    for name in (NET + computed.name, computed.name):
        table = view.pop(name, None)
        if table is None:
            continue
        own = computed.compute(network)
        if table.shape != own.shape or not bool(((table - own).abs() <= computed.tolerance).all()):
            raise UserError(
                f"{path}: {name} is not {computed.told} of {config.model.name} at {config.data.image_size} pixels; "
                "give the --config of the model that it is"
            )
