"""Forward-mode differentiation beside a shared primal.

Training needs u with its graph for every row, and du/dt without a graph for the rows with r < t. Instead of a second
forward pass under ``torch.func.jvp``, a :class:`Dual` carries both through one pass: each operation computes its value
as it does for a tensor, and adds the tangent by its own derivative rule, from activations that it has already. A
composite layer is written once, for tensors, and works on duals because the operations that it is made of do.

The rules use the primal and the weights detached, so a tangent never joins the autograd graph. A linear map costs a
tangent one matrix product; general forward-mode differentiation, which allows for a tangent of the weight, runs three.
"""

from __future__ import annotations

import math
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
    """The value of a dual, or the tensor itself."""
    return x.value if isinstance(x, Dual) else x


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision numbers as float32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def add(x: Operand, y: Operand | float) -> Operand:
    """x + y; an operand that is no dual has the tangent zero."""
    if isinstance(x, Dual) and isinstance(y, Dual):
        return Dual(x.value + y.value, x.tangent + y.tangent)
    if isinstance(y, Dual):
        return add(y, x)
    if isinstance(x, Dual):
        value = x.value + y
        return Dual(value, x.tangent.expand(-1, *value.shape[1:]))
    return x + y


def multiply(x: Operand, y: Operand) -> Operand:
    """x y; an operand that is no dual has the tangent zero."""
    if isinstance(x, Dual) and isinstance(y, Dual):
        return Dual(x.value * y.value, x.tangent * y.primal + x.primal * y.tangent)
    if isinstance(y, Dual):
        return multiply(y, x)
    if isinstance(x, Dual):
        return Dual(x.value * y, x.tangent * _rows_of_tangent(y.detach(), x))
    return x * y


def _rows_of_tangent(y: Tensor, x: Dual) -> Tensor:
    """What of ``y`` meets the rows of ``x`` that have a tangent: the last ones, or all of it if it has no batch."""
    has_rows = y.ndim == x.value.ndim and y.shape[0] == x.value.shape[0]
    return y[x.value.shape[0] - x.tangent.shape[0] :] if has_rows else y


def over_tokens(x: Operand) -> Operand:
    """One vector for all tokens of a sample: (B, width) -> (B, 1, width)."""
    return map_linear(lambda vector: vector[:, None], x)


def modulate(x: Operand, shift: Operand, scale: Operand) -> Operand:
    """x (1 + scale) + shift, as adaptive norms (adaLN) let a condition act on all tokens of a sample.

    Args:
        x: (B, T, width).
        shift, scale: (B, width).

    Returns:
        (B, T, width).
    """
    return add(multiply(x, over_tokens(add(scale, 1.0))), over_tokens(shift))


def scaled(function: Callable[[Operand], Operand], x: Operand) -> Operand:
    """``function(x)``, with a tangent that stays within the range of float16 inside the function.

    Float16 ends at 65504, and tangents are not bounded as values are: those of the pixels are velocities, twenty times
    the pixels at small t, and they grow from block to block. A derivative is linear in its direction, so under float16
    autocast each row's tangent is multiplied by the power of two that brings its largest entry to [1/2, 1), and the
    result divided by it in float32. Both are exact; only entries under 2^-24 of the largest are lost. Under any other
    precision this is ``function(x)``.
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
    if device == "meta":  # autocast does not know it
        return False
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _power_of_two(exponent: Tensor, ndim: int) -> Tensor:
    """2 to the power of (K,) integers, as float32 of ``ndim`` dimensions: (K, 1, ...)."""
    return torch.exp2(exponent.float()).view(-1, *[1] * (ndim - 1))


def map_linear(function: Callable[[Tensor], Tensor], x: Operand) -> Operand:
    """Apply a row-wise linear map without weights (reshape, slice, rotation); it maps the tangent as it maps values."""
    if isinstance(x, Dual):
        return Dual(function(x.value), function(x.tangent))
    return function(x)


def concatenate(parts: Sequence[Operand], dim: int) -> Operand:
    """``torch.cat``; a part that is no dual has the tangent zero."""
    value = torch.cat([value_of(part) for part in parts], dim)
    known = [part.tangent for part in parts if isinstance(part, Dual)]
    if not known:
        return value
    rows = known[0].shape[0]
    tangents = [part.tangent if isinstance(part, Dual) else torch.zeros_like(part[:rows]) for part in parts]
    return Dual(value, torch.cat(tangents, dim))


def split(x: Operand, sizes: Sequence[int], dim: int = -1) -> list[Operand]:
    """Parts of these sizes of a dimension, which is not the first."""
    if isinstance(x, Dual):
        pairs = zip(x.value.split(sizes, dim), x.tangent.split(sizes, dim), strict=True)
        return [Dual(value, tangent) for value, tangent in pairs]
    return list(x.split(sizes, dim))


def silu(x: Operand) -> Operand:
    """x sigmoid(x)."""
    if isinstance(x, Dual):
        gate = torch.sigmoid(x.primal)
        return Dual(F.silu(x.value), x.tangent * gate * (1 + x.primal * (1 - gate)))
    return F.silu(x)


def gelu(x: Operand) -> Operand:
    """x Phi(x), where Phi is the distribution function of the normal distribution."""
    if isinstance(x, Dual):
        primal = at_least_float32(x.primal)
        density = torch.exp(-0.5 * primal.square()) / math.sqrt(2 * math.pi)
        slope = 0.5 * (1 + torch.erf(primal / math.sqrt(2))) + primal * density
        return Dual(F.gelu(x.value), x.tangent * slope.to(x.tangent.dtype))
    return F.gelu(x)


def gelu_tanh(x: Operand) -> Operand:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, the usual approximation of :func:`gelu`."""
    if isinstance(x, Dual):
        primal = at_least_float32(x.primal)  # squares of float16 numbers above 255 overflow
        factor, cubic = math.sqrt(2 / math.pi), 0.044715
        tanh = torch.tanh(factor * (primal + cubic * primal**3))
        slope = 0.5 * (1 + tanh) + 0.5 * primal * (1 - tanh.square()) * factor * (1 + 3 * cubic * primal.square())
        return Dual(F.gelu(x.value, approximate="tanh"), x.tangent * slope.to(x.tangent.dtype))
    return F.gelu(x, approximate="tanh")


def sinusoids(x: Operand, frequencies: Tensor) -> Operand:
    """The cosines, then the sines, of x times each frequency: (B,) and (n,) -> (B, 2 n)."""
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

    ``extra_in`` and ``extra_out`` widen the product by zeros, for widths that are slow on tensor cores. The weight
    keeps its true shape for initialisation, optimizer and checkpoints.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, extra_in: int = 0, extra_out: int = 0
    ) -> None:
        assert not (bias and extra_out), "a bias is as wide as the weight"
        super().__init__(in_features, out_features, bias)
        self.extra = (0, extra_in, 0, extra_out)

    def forward(self, x: Operand) -> Operand:  # type: ignore[override]
        """Map (B, ..., in + extra_in) to (B, ..., out + extra_out)."""
        return apply_weight(x, self.padded_weight(value_of(x).device), self.bias)

    def padded_weight(self, device: torch.device) -> Tensor:
        """The weight as products on a device take it: (out + extra_out, in + extra_in)."""
        # On the meta device only counting happens: there the product has its true width.
        pads = any(self.extra) and device.type != "meta"
        return F.pad(self.weight, self.extra) if pads else self.weight


def apply_weight(x: Operand, weight: Tensor, bias: Tensor | None = None) -> Operand:
    """``F.linear``; of a dual's tangent without the bias."""
    if isinstance(x, Dual):
        return Dual(F.linear(x.value, weight, bias), F.linear(x.tangent, weight.detach()))
    return F.linear(x, weight, bias)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` with stride and no padding, on tensors and duals."""

    def forward(self, x: Operand) -> Operand:  # type: ignore[override]
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        if isinstance(x, Dual):
            return Dual(super().forward(x.value), F.conv2d(x.tangent, self.weight.detach(), stride=self.stride))
        return super().forward(x)
