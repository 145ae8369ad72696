"""Names and layouts of the official weights, from and to ours.

The official PyTorch networks (pMF branch ``torch``) wrap every linear layer once more (``_flax_linear``) and name the
parts otherwise; shapes are the same, so conversion is renaming. The JAX networks (branches ``main`` and ``hsdp``) carry
nearly those names as a tree, with kernels as flax stores them: (in, out) and (height, width, in, out).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

# Ours to official; the first pattern that matches the whole name wins. Names without a row are equal.
_OFFICIAL_NAMES: tuple[tuple[str, str], ...] = (
    (r"patch_embedding\.bottleneck\.(.+)", r"x_embedder.proj1.\1"),
    (r"patch_embedding\.expansion\.(.+)", r"x_embedder.proj2.\1"),
    (r"time_embedding\.(.+)", r"h_embedder.\1"),
    (r"guidance_embedding\.(.+)", r"omega_embedder.\1"),
    (r"interval_start_embedding\.(.+)", r"cfg_t_start_embedder.\1"),
    (r"interval_end_embedding\.(.+)", r"cfg_t_end_embedder.\1"),
    (r"label_embedding\.weight", r"y_embedder.embedding_table._flax_embedding.weight"),
    (r"guidance_tokens", r"omega_tokens"),
    (r"interval_start_tokens", r"t_min_tokens"),
    (r"interval_end_tokens", r"t_max_tokens"),
    (r"position_embedding", r"pos_embed"),
    (r"([uv])_blocks\.(.+)", r"\1_heads.\2"),
    (r"([uv])_output\.(.+)", r"\1_final_layer.\2"),
)
# Applied after the above, anywhere in the name.
_OFFICIAL_PARTS: tuple[tuple[str, str], ...] = (
    (r"_embedder\.hidden\.(\w+)$", r"_embedder.mlp.0._flax_linear.\1"),
    (r"_embedder\.output\.(\w+)$", r"_embedder.mlp.2._flax_linear.\1"),
    (r"\.attention\.query\.", r".attn.q_proj._flax_linear."),
    (r"\.attention\.key\.", r".attn.k_proj._flax_linear."),
    (r"\.attention\.value\.", r".attn.v_proj._flax_linear."),
    (r"\.attention\.output\.", r".attn.out_proj._flax_linear."),
    (r"\.attention\.query_norm\.", r".attn.q_norm."),
    (r"\.attention\.key_norm\.", r".attn.k_norm."),
    (r"\.attention_gate$", r".attn_scale"),
    (r"\.mlp_gate$", r".mlp_scale"),
    (r"\.mlp\.gate\.", r".mlp.w1._flax_linear."),
    (r"\.mlp\.down\.", r".mlp.w2._flax_linear."),
    (r"\.mlp\.up\.", r".mlp.w3._flax_linear."),
    (r"_final_layer\.linear\.", r"_final_layer.linear._flax_linear."),
)
# Official PyTorch to JAX, all of them in this order (official models/pmfDiT.py, embedder.py, torch_models.py).
_JAX_PARTS: tuple[tuple[str, str], ...] = (
    (r"^(\w+_(?:blocks|heads))\.(\d+)\.", r"\1_\2."),
    (r"\.mlp\.(\d)\.", r".mlp.layers_\1."),
    (r"\._flax_embedding\.weight$", r".embedding"),
    (r"\.weight$", r".kernel"),
)

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an official code base names and stores our parameters; each function takes our name.

    Attributes:
        name: our name to theirs.
        store: our tensor to theirs.
        restore: their tensor to ours, the inverse of ``store``.
    """

    name: Callable[[str], str]
    store: Callable[[str, Tensor], Tensor]
    restore: Callable[[str, Tensor], Tensor]


def official_name(name: str) -> str:
    """The official PyTorch name, without its leading ``net.``, of one of our pixel transformer's parameters."""
    for pattern, replacement in _OFFICIAL_NAMES:
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, replacement, name)
            break
    for pattern, replacement in _OFFICIAL_PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name of a whole network's tensors, and what it is without what training tools put around modules.

    ``torch.compile``, FSDP and recomputation name their wrappers wherever they stand. Others (``module.`` of DDP and of
    averages, ``model.`` of Lightning) stand before all names; so may the official ``net.``, which stays.
    """
    found = {name: _WRAPPERS.sub("", name) for name in names}
    while True:
        firsts = {name.partition(".")[0] if "." in name else "" for name in found.values()}
        if len(firsts) != 1 or firsts & {"", "net"}:
            return found
        found = {name: short.partition(".")[2] for name, short in found.items()}


def _jax_name(name: str) -> str:
    name = official_name(name)
    for pattern, replacement in _JAX_PARTS:
        name = re.sub(pattern, replacement, name)
    return f"net/{name.replace('.', '/')}"


def _store_for_jax(name: str, tensor: Tensor) -> Tensor:
    if name == "label_embedding.weight":
        return tensor[None]  # (1, classes + 1, width)
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0)  # (height, width, in, out)
    return tensor.T if tensor.ndim == 2 else tensor  # (in, out)


def _restore_from_jax(name: str, tensor: Tensor) -> Tensor:
    if name == "label_embedding.weight":
        return tensor[0]  # (classes + 1, width)
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)  # (out, in, height, width)
    return tensor.T if tensor.ndim == 2 else tensor  # (out, in)


def _as_it_is(_: str, tensor: Tensor) -> Tensor:
    return tensor


PYTORCH = Layout(name=lambda name: f"net.{official_name(name)}", store=_as_it_is, restore=_as_it_is)
OFFICIAL_NETWORK = Layout(name=official_name, store=_as_it_is, restore=_as_it_is)
"""The official network without the wrapper that the official files hold."""
OURS = Layout(name=str, store=_as_it_is, restore=_as_it_is)
JAX = Layout(name=_jax_name, store=_store_for_jax, restore=_restore_from_jax)
