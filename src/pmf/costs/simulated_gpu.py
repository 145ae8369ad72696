"""CUDA's operations on tensors without contents, where there is no GPU.

Shapes and dtypes of CUDA tensors can be followed anywhere. Three things ask for a driver all the same, and get what a
GPU of today would answer: autocast (there is a GPU, and it knows bfloat16), the choice of a kernel for attention (the
fused one), and the backward pass (see pmf/costs/graph_walk.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pmf.costs.graph_walk import backward, grad


@contextlib.contextmanager
def simulated_gpu() -> Iterator[None]:
    """Within, fake tensors of the device ``cuda`` go through a training step; with a GPU nothing is changed."""
    if torch.cuda.is_available():
        yield
        return
    replaced = [
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (Tensor, "backward", backward),
        (torch.autograd, "grad", grad),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        with _FusedAttention():
            yield
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)


class _FusedAttention(TorchFunctionMode):
    """The kernel that torch would choose, with the sums that it keeps for the backward pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        plain = func is F.scaled_dot_product_attention and len(args) == 3 and not kwargs
        if not plain or args[0].device.type != "cuda" or args[0].dtype == torch.float64:
            return func(*args, **kwargs)
        if args[0].dtype == torch.float32:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, True)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
