"""Networks and objectives without contents: tensors that have shapes and dtypes and compute nothing."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Anything = TypeVar("Anything")


def without_contents(value: Anything, device: str = "meta") -> Anything:
    """A copy without contents; the original is neither changed nor read.

    Args:
        value: whatever ``copy.deepcopy`` can copy. Parameters stay parameters, without gradients.
        device: of the copy's tensors: ``meta``, or within a ``FakeTensorMode`` any.
    """
    with _EmptyCopies(device):
        return copy.deepcopy(value)


_OF_PARAMETERS = (vars(torch._C.TensorBase)["data"].__get__, torch._C.TensorBase.clone)


class _EmptyCopies(TorchFunctionMode):
    """What ``copy.deepcopy`` calls for a tensor and, by way of ``data.clone()``, for a parameter."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            original, known = args
            if id(original) not in known:
                known[id(original)] = self._empty(original)
            return known[id(original)]
        if func in _OF_PARAMETERS:
            return self._empty(args[0])
        return func(*args, **(kwargs or {}))

    def _empty(self, like: Tensor) -> Tensor:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=self._device)
