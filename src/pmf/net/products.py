"""Several linear maps of one input as one matrix product, where that is faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pmf.net.dual import Linear, Operand, apply_weight, map_linear, split, value_of


def suits_gpus(device: torch.device) -> bool:
    """Whether layers shall run in the way that is fast on GPUs: few large products, tokens before heads in memory.

    On CPUs the copies that this takes cost more than it saves.
    """
    return device.type == "cuda"


def project(x: Operand, *layers: Linear) -> list[Operand]:
    """What each of the layers makes of ``x``.

    On GPUs it is one product over their weights, one after the other: it fills the device better, and under autocast
    the input is rounded once.

    Args:
        x: (B, ..., in).

    Returns:
        For each layer, (B, ..., out with its padding).
    """
    device = value_of(x).device
    if not suits_gpus(device) or not _are_plain(layers):
        return [layer(x) for layer in layers]
    weights = [layer.padded_weight(device) for layer in layers]
    return split(apply_weight(x, torch.cat(weights)), [len(weight) for weight in weights])


def project_heads(x: Operand, num_heads: int, *layers: Linear) -> list[Operand]:
    """:func:`project` for layers of the same width, whose outputs are the heads' side by side.

    Args:
        x: (B, T, in).

    Returns:
        For each layer, (B, T, heads, out / heads).
    """
    if not suits_gpus(value_of(x).device) or not _are_plain(layers) or any(sum(layer.extra) for layer in layers):
        return [_split_heads(layer(x), num_heads) for layer in layers]
    # Into heads first, then into parts: so the code that inductor writes for their gradients has the norms' loops.
    together = _split_heads(apply_weight(x, torch.cat([layer.weight for layer in layers])), num_heads * len(layers))
    return split(together, [num_heads] * len(layers), dim=-2)


def _are_plain(layers: Sequence[Linear]) -> bool:
    """Whether a layer does no more than multiply by its weight: not where somebody has put another in its place."""
    return all(
        type(layer) is Linear and layer.bias is None and not layer._forward_hooks and not layer._forward_pre_hooks
        for layer in layers
    )


def _split_heads(x: Operand, num_heads: int) -> Operand:
    return map_linear(lambda tensor: tensor.unflatten(-1, (num_heads, -1)), x)
