"""Activation checkpointing: keep a layer's input only, and compute the layer again for its gradients.

The first pass runs without a graph and carries a tangent if there is one. The second runs just before the layer's
backward, on the value alone: nothing flows back through a tangent. torch.utils.checkpoint would want both passes to
save the same tensors in the same order, which two compiled graphs, with and without a tangent, do not promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pmf.net.dual import Dual, Operand


def recomputed(layer: Callable[[Operand], Operand], parameters: Sequence[Tensor], x: Operand) -> Operand:
    """``layer(x)``, of which only the value of ``x`` stays in memory until the backward pass.

    Args:
        layer: deterministic; maps a tensor to a tensor, and a dual to a dual.
        parameters: everything else that gradients shall flow to. They are inputs of the graph here, so what waits for
            their gradients (DDP) finds them as ever.
    """
    if isinstance(x, Dual):
        return Dual(*_Recompute.apply(layer, x.tangent, x.value, *parameters))
    return _Recompute.apply(layer, None, x, *parameters)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: Callable[[Operand], Operand], tangent: Tensor | None, value: Tensor, *parameters: Tensor
    ) -> Any:
        device = value.device.type
        ctx.layer = layer
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.save_for_backward(value, *parameters)
        output = layer(value if tangent is None else Dual(value, tangent))
        if isinstance(output, Dual):
            ctx.mark_non_differentiable(output.tangent)
            return output.value, output.tangent
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Any:
        saved, *parameters = ctx.saved_tensors
        value = saved.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            output = ctx.layer(value)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        value_gradient, *found = torch.autograd.grad(output, (value, *trained), gradient)
        gradients = iter(found)
        return None, None, value_gradient, *(next(gradients) if p.requires_grad else None for p in parameters)
