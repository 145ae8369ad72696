"""Official weights as the official code bases store them, written from their side: no use of our map of names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmf.config.sections import Config
from pmf.config.yaml_file import config_from_plain
from pmf.net.sizes import DIFFUSION_TRANSFORMER, IMF_TRANSFORMER, PIXEL_TRANSFORMER, NetworkSize
from tests.parity.golden import golden_path

SIX = ("pmf_b_16", "pmf_b_32", "pmf_l_16", "pmf_l_32", "pmf_h_16", "pmf_h_32")
IMF = ("imf_b_2", "imf_m_2", "imf_l_2", "imf_xl_2")
# MeanFlow's networks: depth and width, and the number of parameters with patches of 2, 4 and 8.
DIT = {
    "s": (12, 384, (33_105_424, 33_142_336, 33_289_984)),
    "b": (12, 768, (131_091_472, 131_165_248, 131_460_352)),
    "m": (16, 1024, (308_019_216, 308_117_568, 308_510_976)),
    "l": (24, 1024, (459_137_040, 459_235_392, 459_628_800)),
    "xl": (28, 1152, (676_440_592, 676_551_232, 676_993_792)),
}


def official_shapes(name: str) -> dict[str, list[int]]:
    """Official PyTorch names and shapes of one of the six training networks (golden L)."""
    table = json.loads(golden_path(f"L_model_shapes_{'hsdp' if '_h_' in name else 'main'}.json").read_text())
    return table[f"pmfDiT_{name[4:].upper()}"]["shapes"]


def official_imf_shapes(name: str) -> dict[str, list[int]]:
    """Official PyTorch names and shapes of one of iMF's four training networks (golden L)."""
    table = json.loads(golden_path("L_model_shapes_imf.json").read_text())
    return table[f"imfDiT_{name[4:].upper()}"]["shapes"]


def dit_shapes(depth: int, width: int, patch: int, channels: int = 4, classes: int = 1000) -> dict[str, list[int]]:
    """facebookresearch/DiT's names and shapes of one of MeanFlow's networks."""

    def linear(name: str, inputs: int, outputs: int) -> dict[str, list[int]]:
        return {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}

    shapes = {"x_embedder.proj.weight": [width, channels, patch, patch], "x_embedder.proj.bias": [width]}
    for scalar in ("t", "h"):
        shapes |= linear(f"{scalar}_embedder.mlp.0", 256, width) | linear(f"{scalar}_embedder.mlp.2", width, width)
    shapes["y_embedder.embedding_table.weight"] = [classes + 1, width]
    for number in range(depth):
        shapes |= linear(f"blocks.{number}.attn.qkv", width, 3 * width)
        shapes |= linear(f"blocks.{number}.attn.proj", width, width)
        shapes |= linear(f"blocks.{number}.mlp.fc1", width, 4 * width)
        shapes |= linear(f"blocks.{number}.mlp.fc2", 4 * width, width)
        shapes |= linear(f"blocks.{number}.adaLN_modulation.1", width, 6 * width)
    shapes |= linear("final_layer.linear", width, patch * patch * channels)
    return shapes | linear("final_layer.adaLN_modulation.1", width, 2 * width)


def config_of(model: str, image_size: int, num_classes: int = 1000, kind: str = "synthetic", **sampling: Any) -> Config:
    """A recipe that says no more than which network, its space, and how to sample.

    Args:
        image_size: in pixels, also where ``kind`` is ``latents``.
    """
    path = "nowhere" if kind == "latents" else None
    data = {"kind": kind, "path": path, "image_size": image_size, "num_classes": num_classes}
    averages = {"half_lives_kimg": [500, 1000, 2000], "decays": [0.9999]}
    return config_from_plain(
        {"model": {"name": model}, "data": data, "training": {"epochs": 1}, "ema": averages, "sampling": sampling},
        "test",
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


def golden_imf_size(net: Mapping[str, int]) -> NetworkSize:
    """The same for iMF's networks."""
    return NetworkSize(
        IMF_TRANSFORMER,
        width=net["hidden_size"],
        depth=net["depth"],
        head_depth=net["aux_head_depth"],
        num_heads=net["num_heads"],
        patch_size=net["patch_size"],
    )


def golden_dit_size(net: Mapping[str, int]) -> NetworkSize:
    """The same for MeanFlow's networks."""
    return NetworkSize(
        DIFFUSION_TRANSFORMER,
        width=net["hidden_size"],
        depth=net["depth"],
        num_heads=net["num_heads"],
        patch_size=net["patch_size"],
    )


def one_number_each(shapes: Mapping[str, list[int]], first: int = 0) -> dict[str, Tensor]:
    """A value per tensor, at no cost of memory: what is mixed up shows, whatever the size."""
    numbered = enumerate(shapes.items(), first)
    return {name: torch.tensor(float(number)).expand(shape) for number, (name, shape) in numbered}


def without_v_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(("v_heads", "v_final_layer"))}


def pytorch_file(weights: Mapping[str, Tensor], grid: int) -> dict[str, Tensor]:
    """The state dict of the official PyTorch module: everything under ``net.``, and its table of rotations."""
    head_width = weights["shared_blocks.0.attn.q_norm.weight"].shape[0]
    angles = torch.arange(grid)[:, None] / 1e4 ** (torch.arange(0, head_width // 2, 2) / (head_width // 2))
    rows, columns = angles.repeat_interleave(grid, 0), angles.repeat(grid, 1)
    rotations = torch.polar(torch.ones(grid * grid, head_width // 2), torch.cat((rows, columns), 1))
    return {f"net.{name}": tensor for name, tensor in weights.items()} | {"net.rope_freqs": rotations}


def imf_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the official PyTorch module of iMF for inference: no v blocks, but the v head's last layer."""
    return {f"net.{name}": tensor for name, tensor in weights.items() if not name.startswith("v_heads")}


def fd_loss_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """FD-Loss's state dict of a network of pMF or iMF."""
    renamed = {}
    for name, tensor in weights.items():
        name = name.replace("._flax_linear.", ".linear.").replace("._flax_embedding.", ".embedding.")
        renamed[f"net.{name}"] = tensor.reshape(tensor.shape[-2:]) if name.endswith("_tokens") else tensor
    return renamed


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A tree from paths with slashes."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parts, leaf = path.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def as_kernel(tensor: Tensor) -> np.ndarray:
    """A weight as flax stores it."""
    array = tensor.numpy()
    return np.moveaxis(array, (0, 1), (3, 2)) if array.ndim == 4 else array.T


def imf_jax_params(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tree of parameters of iMF's flax module, from official PyTorch names and layouts."""
    flat = {}
    for name, tensor in weights.items():
        path = re.sub(r"(blocks|heads)\.(\d+)\.", r"\1_\2.", name)
        path = re.sub(r"mlp\.(\d)\.", r"mlp.layers_\1.", path).replace(".", "/")
        if path.endswith("_flax_embedding/weight"):
            flat[path.replace("/weight", "/embedding")] = tensor.numpy()
        elif path.endswith("/weight"):
            flat[path.removesuffix("weight") + "kernel"] = as_kernel(tensor)
        else:
            flat[path] = tensor.numpy()
    return {"net": nested(flat)}


def meanflow_jax_params(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tree of parameters of MeanFlow's flax module, from facebookresearch/DiT's names and layouts."""
    flat = {}
    for name, tensor in weights.items():
        path = re.sub(r"\.(\d+)\.", r".layers_\1.", name)
        if name == "y_embedder.embedding_table.weight":
            flat["y_embedder/embedding_table/_flax_embedding/embedding"] = tensor.numpy()
            continue
        *parts, leaf = path.split(".")
        if name.split(".")[0] != "x_embedder":
            parts.append("_flax_linear")
        flat["/".join((*parts, "kernel" if leaf == "weight" else leaf))] = (
            as_kernel(tensor) if leaf == "weight" else tensor.numpy()
        )
    return {"net": nested(flat)}


def jax_params(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tree of parameters of pMF's flax module, from official PyTorch names and layouts."""
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
