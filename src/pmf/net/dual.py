"""Forward-mode differentiation beside a shared primal.

Training needs u with its graph for every row, and du/dt without a graph for the rows with r < t. Instead of a second
forward pass under ``torch.func.jvp``, a :class:`Dual` carries both through one pass: each operation computes its value
as ever and adds the tangent by its own derivative rule, from activations that are there already. A composite layer is
written once, for tensors, and works on duals because the operations it is made of do.

Rules see the primal and the weights detached, so a tangent never joins the autograd graph. A linear map costs a
tangent one matrix product; generic forward AD, which must allow for a tangent of the weight, runs three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(eq=False)
class Dual:
    """A tensor and the directional derivative of its last rows.

    Attributes:
        value: (B, ...), with whatever autograd graph it has.
        tangent: (K, ...), K <= B, without a graph; row k belongs to row B - K + k of ``value``.
    """

    value: Tensor
    tangent: Tensor

    @property
    def primal(self) -> Tensor:
        """The rows of ``value`` that have a tangent, detached: (K, ...)."""
        return self.value.detach()[self.value.shape[0] - self.tangent.shape[0] :]


torch.export.register_dataclass(Dual)  # FSDP looks for the tensors among a block's inputs and outputs
Operand = Tensor | Dual


def value_of(x: Operand) -> Tensor:
    """The value alone."""
    return x.value if isinstance(x, Dual) else x


def add(x: Operand, y: Operand) -> Operand:
    """x + y; what is no dual has the tangent zero."""
    if isinstance(x, Dual) and isinstance(y, Dual):
        return Dual(x.value + y.value, x.tangent + y.tangent)
    if isinstance(y, Dual):
        return add(y, x)
    if isinstance(x, Dual):
        value = x.value + y
        return Dual(value, x.tangent.expand(-1, *value.shape[1:]))
    return x + y


def multiply(x: Operand, y: Operand) -> Operand:
    """x y, where y has a tangent only if x has one (a gate or a weight has none)."""
    if isinstance(x, Dual):
        if isinstance(y, Dual):
            return Dual(x.value * y.value, x.tangent * y.primal + x.primal * y.tangent)
        return Dual(x.value * y, x.tangent * y.detach())
    assert isinstance(y, Tensor)
    return x * y


def scaled(function: Callable[[Operand], Operand], x: Operand) -> Operand:
    """``function(x)``, with a tangent that stays within half precision on the way.

    Float16 ends at 65504, and tangents are not bounded as values are: those of the pixels are velocities, twenty times
    the pixels at small t, and they grow from block to block. A derivative is linear in its direction, so under float16
    autocast each row's tangent is multiplied by the power of two that brings its largest entry to [1/2, 1), and the
    result divided by it in float32. Both are exact; what is lost are entries under 2^-24 of the largest. Anywhere else
    this is ``function(x)``.
    """
    if not isinstance(x, Dual) or not _in_float16(x.value.device.type):
        return function(x)
    tangent = x.tangent.float()
    largest = tangent.abs().flatten(1).amax(1)  # (K,)
    exponent = torch.frexp(largest).exponent  # 0 for a row of zeros
    result = function(Dual(x.value, tangent * _power_of_two(-exponent, tangent.ndim)))
    assert isinstance(result, Dual)
    return Dual(result.value, result.tangent.float() * _power_of_two(exponent, result.tangent.ndim))


def _in_float16(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _power_of_two(exponent: Tensor, ndim: int) -> Tensor:
    """(K,) integers to (K, 1, ...) float32 that multiply tensors of ``ndim`` dimensions."""
    return torch.exp2(exponent.float()).view(-1, *[1] * (ndim - 1))


def map_linear(function: Callable[[Tensor], Tensor], x: Operand) -> Operand:
    """Apply a row-wise map that is linear and has no weights (reshapes, slices, rotations): its own tangent rule."""
    if isinstance(x, Dual):
        return Dual(function(x.value), function(x.tangent))
    return function(x)


def concatenate(parts: Sequence[Operand], dim: int) -> Operand:
    """``torch.cat`` where parts without a tangent have the tangent zero."""
    value = torch.cat([value_of(part) for part in parts], dim)
    known = [part.tangent for part in parts if isinstance(part, Dual)]
    if not known:
        return value
    rows = known[0].shape[0]
    tangents = [part.tangent if isinstance(part, Dual) else torch.zeros_like(part[:rows]) for part in parts]
    return Dual(value, torch.cat(tangents, dim))


def silu(x: Operand) -> Operand:
    """x sigmoid(x)."""
    if isinstance(x, Dual):
        gate = torch.sigmoid(x.primal)
        return Dual(F.silu(x.value), x.tangent * gate * (1 + x.primal * (1 - gate)))
    return F.silu(x)


def sinusoids(x: Operand, frequencies: Tensor) -> Operand:
    """cos, then sin, of x times each frequency: (B,) and (n,) -> (B, 2 n)."""
    if isinstance(x, Dual):
        angle, rate = x.primal[:, None] * frequencies, x.tangent[:, None] * frequencies
        tangent = torch.cat((-angle.sin() * rate, angle.cos() * rate), dim=-1)
        return Dual(_sinusoids(x.value, frequencies), tangent)
    return _sinusoids(x, frequencies)


def _sinusoids(x: Tensor, frequencies: Tensor) -> Tensor:
    angle = x[:, None] * frequencies
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class Linear(nn.Linear):
    """``nn.Linear`` on tensors and duals.

    ``extra_in`` and ``extra_out`` widen the product by zeros, without touching the weight: its shape, and with it
    initialisation, optimizer and checkpoints, stay the true one. For widths that matrix units take badly.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, extra_in: int = 0, extra_out: int = 0
    ) -> None:
        assert not (bias and extra_out), "a bias is as wide as the weight"
        super().__init__(in_features, out_features, bias)
        self.extra = (0, extra_in, 0, extra_out)

    def forward(self, x: Operand) -> Operand:  # type: ignore[override]
        """(B, ..., in + extra_in) -> (B, ..., out + extra_out)."""
        weight = F.pad(self.weight, self.extra) if any(self.extra) else self.weight
        if isinstance(x, Dual):
            return Dual(F.linear(x.value, weight, self.bias), F.linear(x.tangent, weight.detach()))
        return F.linear(x, weight, self.bias)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` with stride and no padding, on tensors and duals."""

    def forward(self, x: Operand) -> Operand:  # type: ignore[override]
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        if isinstance(x, Dual):
            return Dual(super().forward(x.value), F.conv2d(x.tangent, self.weight.detach(), stride=self.stride))
        return super().forward(x)
