"""Activation checkpointing: keep a layer's inputs only, and compute the layer again for its gradients.

The first pass runs without a graph and carries tangents if there are any. The second runs just before the layer's
backward pass, on the values alone: no gradient flows through a tangent. torch.utils.checkpoint requires that both
passes save the same tensors in the same order, which two compiled graphs, with and without tangents, do not promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pmf.net.dual import Dual, Operand


def recomputed(layer: Callable[..., Operand], parameters: Sequence[Tensor], *inputs: Any) -> Operand:
    """``layer(*inputs)``, of which only the values of the inputs stay in memory until the backward pass.

    Args:
        layer: deterministic; maps tensors to a tensor, and to a dual if an input is a dual.
        parameters: all other tensors that gradients shall flow to. They are inputs of the graph here, so that whatever
            waits for their gradients (DDP) finds them where it looks.
        inputs: tensors and duals, which get gradients, and anything else, which both passes are given.
    """
    values = [part.value if isinstance(part, Dual) else part for part in inputs]
    tangents = [part.tangent if isinstance(part, Dual) else None for part in inputs]
    output = _Recompute.apply(layer, tangents, *values, *parameters)
    return Dual(*output) if isinstance(output, tuple) else output


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Callable[..., Operand], tangents: list[Tensor | None], *arguments: Any) -> Any:
        values, parameters = arguments[: len(tangents)], arguments[len(tangents) :]
        device = next(value for value in values if isinstance(value, Tensor)).device.type
        ctx.layer = layer
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.others = [None if isinstance(value, Tensor) else value for value in values]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in values), *parameters)
        pairs = zip(values, tangents, strict=True)
        output = layer(*(value if tangent is None else Dual(value, tangent) for value, tangent in pairs))
        if isinstance(output, Dual):
            ctx.mark_non_differentiable(output.tangent)
            return output.value, output.tangent
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Any:
        count = len(ctx.others)
        needed = ctx.needs_input_grad[2:]  # of the values, then of the parameters
        saved, parameters = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        values = [
            other if tensor is None else tensor.detach().requires_grad_(wanted)
            for other, tensor, wanted in zip(ctx.others, saved, needed[:count], strict=True)
        ]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            output = ctx.layer(*values)
        sources = [source for source, wanted in zip((*values, *parameters), needed, strict=True) if wanted]
        gradients = iter(torch.autograd.grad(output, sources, gradient))
        return None, None, *(next(gradients) if wanted else None for wanted in needed)
