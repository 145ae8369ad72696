"""Reading the golden vectors: numbers made by running the official JAX code, described by each file's ``meta``.

PMF_GOLDEN_DIR names another folder of the same format, with other seeds and sizes; nothing below the loader may
assume a size.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmf.checkpoint.official.names import official_name
from pmf.net.diffusion_transformer import DiffusionTransformer
from pmf.net.imf_transformer import ImfTransformer
from pmf.net.pixel_transformer import PixelTransformer

OWN_FOLDER = Path(__file__).parents[1] / "golden"
FOLDER = Path(os.environ.get("PMF_GOLDEN_DIR", OWN_FOLDER))

# Networks, float32 against float32, other summation orders: measured 2e-7 ... 4e-7.
RELATIVE = 2e-6
# Images. Measured by the makers between the official JAX and PyTorch codes: 1.9e-6.
IMAGE = 2e-5


def golden_path(file_name: str) -> Path:
    """The file in the folder that is asked for; what that folder does not hold is taken from our own."""
    path = FOLDER / file_name
    return path if path.exists() else OWN_FOLDER / file_name


class Golden:
    """One file: ``meta`` and its arrays as tensors."""

    def __init__(self, name: str) -> None:
        with np.load(golden_path(f"{name}.npz")) as arrays:
            self.meta: dict[str, Any] = json.loads(str(arrays["meta"]))
            self.arrays = {key: arrays[key] for key in arrays.files if key != "meta"}

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def image(self, key: str) -> Tensor:
        """NHWC array as an NCHW tensor."""
        return self[key].permute(0, 3, 1, 2).contiguous()

    def scalar(self, key: str) -> Tensor:
        """(B,1,1,1) or (B,) array as a (B,) tensor."""
        return self[key].flatten()

    def group(self, prefix: str) -> dict[str, Tensor]:
        """All tensors under a prefix, by the rest of their name."""
        return {key[len(prefix) :]: self[key] for key in self.arrays if key.startswith(prefix)}


def build_network(
    settings: dict[str, Any], weights: dict[str, Tensor], mlp_width: int | None = None
) -> PixelTransformer:
    """Our network with official weights of pMF; ``settings`` is the ``net`` entry of a file's meta."""
    network = PixelTransformer(**shape_of(settings), head_depth=settings["aux_head_depth"], mlp_width=mlp_width)
    network.load_state_dict({name: weights[official_name(name)] for name in network.state_dict()})
    return network


def build_imf(settings: dict[str, Any], weights: dict[str, Tensor]) -> ImfTransformer:
    """The same for iMF, whose tokens the official code stores as (n, width)."""
    network = ImfTransformer(**shape_of(settings), head_depth=settings["aux_head_depth"])
    network.load_state_dict(
        {name: weights[imf_name(name)].view(tensor.shape) for name, tensor in network.state_dict().items()}
    )
    return network


def build_dit(settings: dict[str, Any], weights: dict[str, Tensor]) -> DiffusionTransformer:
    """The same for MeanFlow."""
    network = DiffusionTransformer(**shape_of(settings))
    network.load_state_dict({name: weights[dit_name(name)] for name in network.state_dict()})
    return network


def shape_of(settings: dict[str, Any]) -> dict[str, int]:
    """What the constructors of all networks take, from the official names of these numbers."""
    return {
        "image_size": settings["input_size"],
        "patch_size": settings["patch_size"],
        "channels": settings.get("in_channels", 3),
        "num_classes": settings["num_classes"],
        "width": settings["hidden_size"],
        "depth": settings["depth"],
        "num_heads": settings["num_heads"],
    }


def imf_name(name: str) -> str:
    """The official name of a parameter of iMF: pMF's but for the patches."""
    return official_name(name).replace("patch_embedding.projection", "x_embedder.proj")


def dit_name(name: str) -> str:
    """The name of a parameter of MeanFlow's network in facebookresearch/DiT, of which golden H makes use."""
    for ours, official in DIT_PARTS.items():
        name = re.sub(ours, official, name)
    return name


DIT_PARTS = {
    r"^patch_embedding\.projection": "x_embedder.proj",
    r"^time_embedding": "t_embedder",
    r"^duration_embedding": "h_embedder",
    r"_embedder\.hidden": "_embedder.mlp.0",
    r"_embedder\.output": "_embedder.mlp.2",
    r"^label_embedding": "y_embedder.embedding_table",
    r"^output": "final_layer",
    r"\.attention\.output": ".attn.proj",
    r"\.attention\.qkv": ".attn.qkv",
    r"\.mlp\.up": ".mlp.fc1",
    r"\.mlp\.down": ".mlp.fc2",
    r"\.modulation": ".adaLN_modulation.1",
}


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """Largest over samples of max|a - b| / max|b|; rows of small t are a thousand times the others, so per sample."""
    assert ours.shape == golden.shape, f"{tuple(ours.shape)} against {tuple(golden.shape)}"
    if not golden.numel():
        return 0.0
    difference = (ours.detach() - golden).flatten(1).abs().amax(1)
    return float((difference / golden.flatten(1).abs().amax(1).clamp_min(1e-30)).max())
