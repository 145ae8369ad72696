"""Norms over the last dimension, for tensors and duals, in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from pmf.net.dual import Dual, Operand, at_least_float32


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) times a weight."""

    eps = 1e-6

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Operand) -> Operand:
        """Normalise (B, ..., width) over its last dimension."""
        if isinstance(x, Dual):
            return Dual(self._value(x.value), self._tangent(x))
        return self._value(x)

    def _value(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        if forward_ad.unpack_dual(x).tangent is not None:  # the fused kernel has no forward-mode derivative on CUDA
            return x * self._inverse_rms(x) * self.weight
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def _inverse_rms(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def _tangent(self, x: Dual) -> Tensor:
        primal, tangent = at_least_float32(x.primal), at_least_float32(x.tangent)
        inverse = self._inverse_rms(primal)
        unit = primal * inverse
        return inverse * (tangent - unit * (unit * tangent).mean(-1, keepdim=True)) * self.weight.detach()


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-6); with ``affine`` times a weight, plus a bias."""

    eps = 1e-6

    def __init__(self, width: int, *, affine: bool) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Operand) -> Operand:
        """Normalise (B, ..., width) over its last dimension."""
        if isinstance(x, Dual):
            return Dual(self._value(x.value), self._tangent(x))
        return self._value(x)

    def _value(self, x: Tensor) -> Tensor:
        return F.layer_norm(at_least_float32(x), (self.width,), self.weight, self.bias, self.eps)

    def _tangent(self, x: Dual) -> Tensor:
        primal, tangent = at_least_float32(x.primal), at_least_float32(x.tangent)
        centred = primal - primal.mean(-1, keepdim=True)
        inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        unit = centred * inverse
        turned = tangent - tangent.mean(-1, keepdim=True) - unit * (unit * tangent).mean(-1, keepdim=True)
        return inverse * turned if self.weight is None else inverse * turned * self.weight.detach()
