"""Names and layouts of the weights of pMF and iMF, from and to ours.

The official PyTorch networks (branch ``torch`` of either repository) wrap every linear layer once more
(``_flax_linear``) and name the parts otherwise; but for iMF's tokens shapes are the same. The JAX networks carry nearly
those names as a tree, with kernels as flax stores them. FD-Loss (Jiawei-Yang/FD-loss) trains the networks of both on,
and names its wrappers ``linear`` and ``embedding``.
"""

from __future__ import annotations

from torch import Tensor

from pmf.checkpoint.official.naming import Layout, from_kernel, replace_all, replace_first, to_kernel

LABELS = "label_embedding.weight"

# Ours to official; the first pattern that matches the whole name wins. Names without a row are equal.
_OFFICIAL_NAMES: tuple[tuple[str, str], ...] = (
    (r"patch_embedding\.bottleneck\.(.+)", r"x_embedder.proj1.\1"),
    (r"patch_embedding\.expansion\.(.+)", r"x_embedder.proj2.\1"),
    (r"patch_embedding\.projection\.(.+)", r"x_embedder.proj.\1"),
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
# Official PyTorch to JAX (official models/pmfDiT.py, imfDiT.py, embedder.py, torch_models.py).
_JAX_PARTS: tuple[tuple[str, str], ...] = (
    (r"^(\w+_(?:blocks|heads))\.(\d+)\.", r"\1_\2."),
    (r"\.mlp\.(\d)\.", r".mlp.layers_\1."),
    (r"\._flax_embedding\.weight$", r"._flax_embedding.embedding"),
    (r"\.weight$", r".kernel"),
)


def official_name(name: str) -> str:
    """The official PyTorch name, without its leading ``net.``, of one of our parameters of pMF or iMF."""
    return replace_all(replace_first(name, _OFFICIAL_NAMES), _OFFICIAL_PARTS)


def _fd_loss_name(name: str) -> str:
    return official_name(name).replace("._flax_", ".")


def _imf_jax_name(name: str) -> str:
    return f"net/{replace_all(official_name(name), _JAX_PARTS).replace('.', '/')}"


def _pmf_jax_name(name: str) -> str:
    return _imf_jax_name(name).replace("/_flax_embedding/", "/")


def _without_batch(name: str, tensor: Tensor) -> Tensor:
    """Tokens as (n, width), where ours are (1, n, width)."""
    return tensor[0] if name.endswith("_tokens") else tensor


def _with_batch(name: str, tensor: Tensor) -> Tensor:
    return tensor[None] if name.endswith("_tokens") else tensor


def _store_pmf_jax(name: str, tensor: Tensor) -> Tensor:
    return tensor[None] if name == LABELS else to_kernel(tensor)  # (1, classes + 1, width)


def _restore_pmf_jax(name: str, tensor: Tensor) -> Tensor:
    return tensor[0] if name == LABELS else from_kernel(tensor)


def _store_imf_jax(name: str, tensor: Tensor) -> Tensor:
    return tensor if name == LABELS else _without_batch(name, to_kernel(tensor))


def _restore_imf_jax(name: str, tensor: Tensor) -> Tensor:
    if name == LABELS or name.endswith("_tokens"):
        return _with_batch(name, tensor)
    return from_kernel(tensor)


PMF_PYTORCH = Layout(name=official_name)
PMF_JAX = Layout(name=_pmf_jax_name, store=_store_pmf_jax, restore=_restore_pmf_jax)
IMF_PYTORCH = Layout(name=official_name, store=_without_batch, restore=_with_batch)
IMF_JAX = Layout(name=_imf_jax_name, store=_store_imf_jax, restore=_restore_imf_jax)
FD_LOSS = Layout(name=_fd_loss_name, store=_without_batch, restore=_with_batch)
