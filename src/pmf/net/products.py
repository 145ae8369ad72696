"""Several linear maps of one input as one matrix product, where that is faster."""

from __future__ import annotations

import torch

from pmf.net.dual import Linear, Operand, apply_weight, split, value_of


def project(x: Operand, *layers: Linear) -> list[Operand]:
    """What each of the layers, which have no biases, makes of ``x``.

    On CUDA it is one product over their weights, one after the other: it fills the device better, and under autocast
    the input is rounded once. Elsewhere each layer runs by itself: there to copy the weights costs more.

    Args:
        x: (B, ..., in).

    Returns:
        For each layer, (B, ..., out with its padding).
    """
    device = value_of(x).device
    if device.type != "cuda":
        return [layer(x) for layer in layers]
    weights = [layer.padded_weight(device) for layer in layers]
    return split(apply_weight(x, torch.cat(weights)), [len(weight) for weight in weights])
