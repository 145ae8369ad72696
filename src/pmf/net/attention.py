"""Softmax attention: by the fused kernel, or written out where forward-mode differentiation needs that."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from pmf.net.dual import Dual, Operand


def attention(query: Operand, key: Operand, value: Operand) -> Operand:
    """softmax(query key^T / sqrt(d)) value, per head.

    No fused kernel has a forward-mode derivative, so under ``torch.func.jvp`` attention is written out. Of duals, the
    fused kernel computes the value and the rule below the tangent. Everything else runs through the fused kernel.

    Args:
        query, key, value: (B, heads, T, d), all tensors or all duals.

    Returns:
        (B, heads, T, d).
    """
    if isinstance(query, Dual) and isinstance(key, Dual) and isinstance(value, Dual):
        output = F.scaled_dot_product_attention(query.value, key.value, value.value)
        return Dual(output, _attention_tangent(query, key, value, output))
    assert isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor), "tensors or duals"
    if forward_ad.unpack_dual(query).tangent is not None:
        return _probabilities(query, key) @ value
    return F.scaled_dot_product_attention(query, key, value)


def _probabilities(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1), dim=-1)


def _attention_tangent(query: Dual, key: Dual, value: Dual, output: Tensor) -> Tensor:
    """d(P V) = (P * dS - P rowsum(P * dS)) V + P dV, with P V known from the fused pass.

    The sums dq k^T + q dk^T and (P * dS) V + P dV run as one product each over concatenated factors.
    """
    probabilities = _probabilities(query.primal, key.primal)  # (K, heads, T, T)
    scale = query.primal.shape[-1] ** -0.5
    rates = torch.cat((query.tangent, query.primal), -1) * scale
    d_scores = rates @ torch.cat((key.primal, key.tangent), -1).transpose(-2, -1)  # (K, heads, T, T)
    weighted = probabilities * d_scores
    both = torch.cat((weighted, probabilities), -1) @ torch.cat((value.primal, value.tangent), -2)
    primal_output = output.detach()[output.shape[0] - both.shape[0] :]
    return both - weighted.sum(-1, keepdim=True) * primal_output  # (K, heads, T, d)
