"""Names and layouts of other people's weights, from and to ours.

The official PyTorch networks (pMF branch ``torch``) wrap every linear layer once more (``_flax_linear``) and name the
parts otherwise; shapes are the same, so conversion is renaming.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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


def official_name(name: str) -> str:
    """The official PyTorch name, without its leading ``net.``, of one of our pixel transformer's parameters."""
    for pattern, replacement in _OFFICIAL_NAMES:
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, replacement, name)
            break
    for pattern, replacement in _OFFICIAL_PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def from_official(weights: Mapping[str, Tensor], our_names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights under our names.

    Args:
        weights: by official name.
        our_names: our network's ``state_dict()`` (or parameters); says which names there are.

    Raises:
        KeyError: a weight of ours has no counterpart.
    """
    return {name: weights[official_name(name)] for name in our_names}
