"""Which files are published for which architecture: the table of layouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pmf.checkpoint.official.diffusion_names import DIT_PYTORCH, MEANFLOW_JAX
from pmf.checkpoint.official.names import FD_LOSS, IMF_JAX, IMF_PYTORCH, PMF_JAX, PMF_PYTORCH
from pmf.checkpoint.official.naming import Layout
from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.errors import UserError
from pmf.net.base import BaseNetwork
from pmf.net.diffusion_transformer import DiffusionTransformer
from pmf.net.imf_transformer import ImfTransformer
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.positions import Rotation, sincos_positions
from pmf.net.sizes import find_architecture

NET = "net."
"""How names begin in files of the official PyTorch networks, which stand in a wrapper."""
NO_IMAGES = "such weights make no images; choose an older checkpoint"
"""Advice on weights that are not finite."""


@dataclass(frozen=True, kw_only=True)
class ComputedTensor:
    """What a PyTorch file may hold though it follows from the sizes of the network; ours computes it.

    Attributes:
        name: in the file, after the prefix of the official names.
        compute: its value, of a network that may be on the meta device.
        tolerance: largest difference from ours.
        told: what it is, in words.
        exported: whether the official network wants it.
    """

    name: str
    compute: Callable[[BaseNetwork], Tensor]
    tolerance: float
    told: str
    exported: bool


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the files of one architecture are laid out.

    Attributes:
        pytorch: that of the official PyTorch network, or the one in use; read with and without a leading ``net.``.
        prefix: what stands before them there.
        jax: those of the JAX training's states.
        others: further names that PyTorch files are read with.
        computed: beside the weights of PyTorch files.
        one_average: the JAX state's ``ema_params`` is one tree of weights, and not one for each half-life.
        idle: how the names of those of our training's tensors begin that inference files may hold all the same, though
            no image depends on them.
        wants_idle: whether the official inference network wants them.
    """

    pytorch: Layout
    prefix: str = NET
    jax: Layout
    computed: ComputedTensor
    others: tuple[Layout, ...] = ()
    one_average: bool = False
    idle: tuple[str, ...] = ()
    wants_idle: bool = False


def rotations(network: BaseNetwork) -> Tensor:
    """(rotated tokens, head width / 2) complex64: what queries and keys are multiplied with."""
    assert isinstance(network.rotation, Rotation)
    angles = network.rotation.angles()
    return torch.complex(angles.cos(), angles.sin())


def positions(network: BaseNetwork) -> Tensor:
    """(1, patches, width) float32: what is added to the patches."""
    patches, width = network.get_buffer("position_embedding").shape
    return sincos_positions(width, math.isqrt(patches))[None]


# The angles of pMF are below the grid's side, and cos and sin may differ in the last place. Those of iMF go up to the
# number of tokens, some 300, where the last place of a float32 angle is 3e-5.
FAMILIES: dict[type[BaseNetwork], Family] = {
    PixelTransformer: Family(
        pytorch=PMF_PYTORCH,
        jax=PMF_JAX,
        others=(FD_LOSS,),
        computed=ComputedTensor(
            name="rope_freqs", compute=rotations, tolerance=1e-6, told="the rotation", exported=True
        ),
        idle=("v_output.",),
    ),
    ImfTransformer: Family(
        pytorch=IMF_PYTORCH,
        jax=IMF_JAX,
        others=(FD_LOSS,),
        computed=ComputedTensor(
            name="rope_freqs", compute=rotations, tolerance=1e-4, told="the rotation", exported=False
        ),
        one_average=True,
        idle=("v_output.",),
        wants_idle=True,
    ),
    DiffusionTransformer: Family(
        pytorch=DIT_PYTORCH,
        prefix="",
        jax=MEANFLOW_JAX,
        computed=ComputedTensor(
            name="pos_embed", compute=positions, tolerance=1e-5, told="the position table", exported=True
        ),
        one_average=True,
    ),
}
"""By the architecture of ``model.name``. Published weights of another one are a row."""


def family_of(config: Config) -> Family:
    """The row of the config's architecture.

    Raises:
        UserError: there is none.
    """
    family = FAMILIES.get(find_architecture(config.model.name))
    if family is None:
        raise UserError(
            f"model.name is {config.model.name}: there are no official files of its architecture; they are of the "
            "models of pMF, iMF and MeanFlow"
        )
    return family


def idle_names(network: BaseNetwork) -> set[str]:
    """The tensors that inference files may hold though nothing there depends on them."""
    family = FAMILIES.get(type(network))
    return {name for name in network.state_dict() if family is not None and name.startswith(family.idle)}


def network_without_values(config: Config) -> BaseNetwork:
    """The config's network for training, on torch's meta device."""
    with torch.device("meta"):
        return network_of(config)
