"""Checkpoints of the official JAX training: flax's ``TrainState``, written through orbax or as one msgpack file.

The state holds ``step``, ``params``, ``opt_state`` and ``ema_params`` (official utils/trainstate_util.py and
ckpt_util.py). pMF's ``ema_params`` are several trees like ``params``, each named by its half-life in kimg; those of iMF
and MeanFlow are one such tree. Only the weights that are asked for are read. flax and orbax come with the extra
``jax``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmf.errors import UserError
from pmf.options import number_name

ROOT = "net"
"""The module of the network, under which all weights of a tree stand."""


def read_jax(path: Path, which: str, *, one: str) -> dict[str, Tensor]:
    """The chosen weights of a checkpoint by path, such as ``net/shared_blocks_0/attn/q_proj/_flax_linear/kernel``.

    Args:
        path: ``checkpoint_STEP``, or the folder that holds it (the newest is taken).
        which: ``online`` or the name of an average.
        one: what the average is called of a state whose ``ema_params`` are one tree, which has no name there.

    Raises:
        UserError: flax is not installed, nothing there, damaged, or no such average (those there are listed).
    """
    found = _find_checkpoint(path)
    _prepare_flax(path)
    from flax.traverse_util import flatten_dict

    try:
        tree = _read_orbax(found, which, one) if found.is_dir() else _read_msgpack(found, which, one)
    except UserError:
        raise
    except Exception as error:  # flax, orbax and tensorstore each have their own kinds
        raise UserError(f"{found}: cannot be read as a JAX checkpoint ({' '.join(str(error).split())[:160]})") from None
    leaves = flatten_dict(tree, sep="/")
    for name, leaf in leaves.items():
        if not isinstance(leaf, np.ndarray):
            raise UserError(f"{found}: {name} is a {type(leaf).__name__}; weights are arrays")
    return {name: torch.from_numpy(np.array(leaf, dtype=np.float32)) for name, leaf in leaves.items()}


def write_jax(folder: Path, tensors: Mapping[str, Tensor], average: str | None) -> None:
    """A state that the official evaluation restores: the weights as ``params`` and as one average, no optimizer.

    Args:
        folder: gets ``checkpoint_0``.
        tensors: by path, as :func:`read_jax` gives them.
        average: its name; None writes ``ema_params`` as one tree.

    Raises:
        UserError: flax is not installed.
    """
    _prepare_flax(folder)
    from flax.training.checkpoints import save_checkpoint
    from flax.traverse_util import unflatten_dict

    params = unflatten_dict({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}, sep="/")
    averages = params if average is None else {average: params}
    save_checkpoint(folder.absolute(), {"step": 0, "params": params, "ema_params": averages}, step=0)


def _prepare_flax(path: Path) -> None:
    if not (importlib.util.find_spec("flax") and importlib.util.find_spec("orbax")):
        raise UserError(
            f'{path}: JAX checkpoints need flax and orbax; install them: uv sync --extra jax, or pip install "pmf[jax]"'
        )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # files need no accelerator
    logging.getLogger("absl").setLevel(logging.ERROR)


def _find_checkpoint(path: Path) -> Path:
    if path.is_file() or _is_orbax(path):
        return path
    steps = {
        int(step): child for child in path.glob("checkpoint_*") if (step := child.name.partition("_")[2]).isdigit()
    }
    if not steps:
        raise UserError(f"{path}: is no JAX checkpoint and holds no checkpoint_STEP; give the folder that was unzipped")
    return steps[max(steps)]


def _is_orbax(folder: Path) -> bool:
    return (folder / "_METADATA").exists()


def _read_orbax(folder: Path, which: str, one: str) -> Any:
    """One branch of the tree as numpy arrays, on whatever devices it was written from."""
    import orbax.checkpoint as ocp
    from jax.tree_util import tree_map

    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    metadata = checkpointer.metadata(folder.absolute()).item_metadata
    if metadata is None:
        raise UserError(f"{folder}: its metadata cannot be read; unzip or copy it again")
    branch, *rest = _branch(metadata.tree, which, one, folder)
    wanted = {branch: metadata.tree[branch] if not rest else {rest[0]: metadata.tree[branch][rest[0]]}}
    arrays = tree_map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    restore = ocp.args.PyTreeRestore(item=wanted, restore_args=arrays, partial_restore=True)
    return _descend(checkpointer.restore(folder.absolute(), args=restore), (branch, *rest))


def _read_msgpack(file: Path, which: str, one: str) -> Any:
    from flax.serialization import msgpack_restore

    tree = msgpack_restore(file.read_bytes())
    if not isinstance(tree, dict):
        raise UserError(f"{file}: holds a {type(tree).__name__}, not a training state")
    return _descend(tree, _branch(tree, which, one, file))


def _descend(tree: Any, branch: tuple[str, ...]) -> Any:
    for key in branch:
        tree = tree[key]
    return tree


def _branch(tree: Mapping[str, Any], which: str, one: str, where: Path) -> tuple[str, ...]:
    """The keys that lead to the chosen weights."""
    averages = tree.get("ema_params") or {}
    branches: dict[str, tuple[str, ...]]
    if ROOT in averages:
        branches = {one: ("ema_params",)}
    else:
        branches = {_average_name(key): ("ema_params", key) for key in averages}
    if "params" in tree:
        branches["online"] = ("params",)
    if not branches:
        raise UserError(f"{where}: has neither params nor ema_params, so it is no training state of an official code")
    if which not in branches:
        raise UserError(f"{where}: has no average '{which}'; choose with --ema one of: {', '.join(branches)}")
    return branches[which]


def _average_name(key: str) -> str:
    try:
        return str(number_name(float(key)))
    except ValueError:
        return key
