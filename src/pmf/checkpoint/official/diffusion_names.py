"""Names and layouts of the weights of MeanFlow's diffusion transformers, from and to ours.

PyTorch files have the names of facebookresearch/DiT, with ``h_embedder`` beside ``t_embedder``; there is no official
one. The JAX network (official models/models_dit.py, timm_models.py, torch_models.py) carries nearly those names as a
tree, with kernels as flax stores them and each linear layer wrapped once more.
"""

from __future__ import annotations

from torch import Tensor

from pmf.checkpoint.official.naming import Layout, from_kernel, replace_all, to_kernel

# Ours to facebookresearch/DiT's, all of them in this order. Names without a row are equal.
_DIT_PARTS: tuple[tuple[str, str], ...] = (
    (r"^patch_embedding\.projection\.", r"x_embedder.proj."),
    (r"^time_embedding\.", r"t_embedder."),
    (r"^duration_embedding\.", r"h_embedder."),
    (r"^label_embedding\.", r"y_embedder.embedding_table."),
    (r"_embedder\.hidden\.", r"_embedder.mlp.0."),
    (r"_embedder\.output\.", r"_embedder.mlp.2."),
    (r"\.attention\.qkv\.", r".attn.qkv."),
    (r"\.attention\.output\.", r".attn.proj."),
    (r"\.mlp\.up\.", r".mlp.fc1."),
    (r"\.mlp\.down\.", r".mlp.fc2."),
    (r"^output\.", r"final_layer."),
    (r"\.modulation\.", r".adaLN_modulation.1."),
)
# facebookresearch/DiT's to JAX: lists and sequences of layers have ``layers_N``.
_JAX_PARTS: tuple[tuple[str, str], ...] = (
    (r"\.(\d+)\.", r".layers_\1."),
    (r"^y_embedder\.embedding_table\.weight$", r"y_embedder.embedding_table._flax_embedding.embedding"),
    (r"^(?!x_embedder|y_embedder)(.+)\.weight$", r"\1._flax_linear.kernel"),
    (r"^(?!x_embedder)(.+)\.bias$", r"\1._flax_linear.bias"),
    (r"\.weight$", r".kernel"),
)


def dit_name(name: str) -> str:
    """The name in facebookresearch/DiT of one of our diffusion transformer's parameters."""
    return replace_all(name, _DIT_PARTS)


def _jax_name(name: str) -> str:
    return f"net/{replace_all(dit_name(name), _JAX_PARTS).replace('.', '/')}"


def _store_for_jax(name: str, tensor: Tensor) -> Tensor:
    return tensor if name.startswith("label_embedding") else to_kernel(tensor)


def _restore_from_jax(name: str, tensor: Tensor) -> Tensor:
    return tensor if name.startswith("label_embedding") else from_kernel(tensor)


DIT_PYTORCH = Layout(name=dit_name)
MEANFLOW_JAX = Layout(name=_jax_name, store=_store_for_jax, restore=_restore_from_jax)
