"""Official weights as the official code bases store them, written from their side: no use of our map of names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmf.config.sections import Config
from pmf.config.yaml_file import config_from_plain
from pmf.net.sizes import PIXEL_TRANSFORMER, NetworkSize
from tests.parity.golden import golden_path

SIX = ("pmf_b_16", "pmf_b_32", "pmf_l_16", "pmf_l_32", "pmf_h_16", "pmf_h_32")


def official_shapes(name: str) -> dict[str, list[int]]:
    """Official PyTorch names and shapes of one of the six training networks (golden L)."""
    table = json.loads(golden_path(f"L_model_shapes_{'hsdp' if '_h_' in name else 'main'}.json").read_text())
    return table[f"pmfDiT_{name[4:].upper()}"]["shapes"]


def config_of(model: str, image_size: int, num_classes: int = 1000, **sampling: Any) -> Config:
    """A recipe that says no more than which network, and how to sample."""
    data = {"kind": "synthetic", "image_size": image_size, "num_classes": num_classes}
    return config_from_plain(
        {"model": {"name": model}, "data": data, "training": {"epochs": 1}, "sampling": sampling}, "test"
    )


def golden_size(net: Mapping[str, int], mlp_width: int | None = None) -> NetworkSize:
    """A row of our table from the ``net`` entry of a golden file's meta."""
    return NetworkSize(
        PIXEL_TRANSFORMER,
        width=net["hidden_size"],
        depth=net["depth"],
        head_depth=net["aux_head_depth"],
        num_heads=net["num_heads"],
        mlp_width=mlp_width or int(net["hidden_size"] * 8 / 3),
        patch_size=net["patch_size"],
    )


def without_v_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(("v_heads", "v_final_layer"))}


def pytorch_file(weights: Mapping[str, Tensor], grid: int) -> dict[str, Tensor]:
    """The state dict of the official PyTorch module: everything under ``net.``, and its table of rotations."""
    head_width = weights["shared_blocks.0.attn.q_norm.weight"].shape[0]
    angles = torch.arange(grid)[:, None] / 1e4 ** (torch.arange(0, head_width // 2, 2) / (head_width // 2))
    rows, columns = angles.repeat_interleave(grid, 0), angles.repeat(grid, 1)
    rotations = torch.polar(torch.ones(grid * grid, head_width // 2), torch.cat((rows, columns), 1))
    return {f"net.{name}": tensor for name, tensor in weights.items()} | {"net.rope_freqs": rotations}


def jax_params(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tree of parameters of the official flax module, from official PyTorch names and layouts."""
    tree: dict[str, Any] = {}
    for name, tensor in weights.items():
        *parts, leaf = name.split(".")
        path = ["net"]
        for part in parts:
            if not part.isdigit():
                path.append(part)
            elif path[-1] == "mlp":
                path.append(f"layers_{part}")  # flax.linen.Sequential
            else:
                path[-1] += f"_{part}"  # a list of modules
        array = tensor.numpy()
        if path[-1] == "_flax_embedding":
            path, leaf, array = path[:-1], "embedding", array[None]
        elif leaf == "weight":
            leaf = "kernel"
            if array.ndim == 2:
                array = array.T
            elif array.ndim == 4:
                array = np.moveaxis(array, (0, 1), (3, 2))
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array
    return tree
