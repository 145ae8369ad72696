"""Numbers that change from update to update, and the operations that take them.

A rate is a number of the host, or, where an update is recorded as a CUDA graph, a tensor of shape () on the device: a
graph would keep a number as it was. ``torch._foreach_mul`` and ``_foreach_div`` take either. What adds a multiple takes
numbers only; here are those operations for both. With a tensor the product is rounded before it is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Rate = float | Tensor
Rates = Mapping[str, Rate]


def add_(tensors: list[Tensor], others: list[Tensor], rate: Rate, factor: float = 1.0) -> None:
    """``tensors += factor * rate * others``."""
    if isinstance(rate, Tensor):
        torch._foreach_add_(tensors, torch._foreach_mul(others, rate), alpha=factor)
    else:
        torch._foreach_add_(tensors, others, alpha=factor * rate)


def add_quotients_(
    tensors: list[Tensor], numerators: list[Tensor], denominators: list[Tensor], rate: Rate, factor: float = 1.0
) -> None:
    """``tensors += factor * rate * numerators / denominators``; the numerators may be overwritten."""
    if isinstance(rate, Tensor):
        torch._foreach_mul_(numerators, rate)
        torch._foreach_addcdiv_(tensors, numerators, denominators, factor)
    else:
        torch._foreach_addcdiv_(tensors, numerators, denominators, factor * rate)


def approach_(copies: Sequence[list[Tensor]], targets: list[Tensor], rates: Sequence[Rate]) -> None:
    """``copy += rate * (target - copy)`` for each tensor of several lists, each with its own rate in [0, 1]."""
    numbers = [rate for rate in rates if not isinstance(rate, Tensor)]
    if len(numbers) == len(rates):  # all lists in one operation
        weights = [number for number in numbers for _ in targets]
        torch._foreach_lerp_([tensor for each in copies for tensor in each], targets * len(copies), weights)
        return
    for each, rate in zip(copies, rates, strict=True):
        differences = torch._foreach_sub(targets, each)
        torch._foreach_mul_(differences, rate)
        torch._foreach_add_(each, differences)
