"""Softmax attention: by the fused kernel, or written out where forward-mode differentiation needs that."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.autograd import forward_ad

from pmf.compilers import HAS_TRITON
from pmf.net.dual import Dual, Operand, at_least_float32

HEAD_WIDTHS = {torch.bfloat16: range(1, 81), torch.float16: range(1, 81), torch.float32: range(64, 81)}
"""Of the kernel. Much wider heads do not fit into registers; narrow ones in exact float32 Triton 3.9 cannot compile."""


def attention(query: Operand, key: Operand, value: Operand) -> Operand:
    """softmax(query key^T / sqrt(d)) value, per head.

    No fused kernel of torch has a forward-mode derivative, so under ``torch.func.jvp`` attention is written out. Of
    duals, torch's fused kernel computes the value, and the tangent comes from a kernel of ours on CUDA
    (:func:`attention_tangent`) and is written out elsewhere. Everything else runs through torch's kernel.

    Args:
        query, key, value: (B, heads, T, d), all tensors or all duals.

    Returns:
        (B, heads, T, d).
    """
    if isinstance(query, Dual) and isinstance(key, Dual) and isinstance(value, Dual):
        output = F.scaled_dot_product_attention(query.value, key.value, value.value)
        if has_kernel(output):
            parts = (query, key, value)
            factors = (*(part.primal for part in parts), *(part.tangent for part in parts))
            return Dual(output, attention_tangent(*(factor.to(output.dtype) for factor in factors)))
        return Dual(output, written_out_tangent(query, key, value, output))
    assert isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor), "tensors or duals"
    if forward_ad.unpack_dual(query).tangent is not None:
        with _without_autocast(query):
            probabilities = _probabilities(at_least_float32(query), at_least_float32(key))
        return probabilities.to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


def has_kernel(output: Tensor) -> bool:
    """Whether :func:`attention_tangent` can compute the tangent of such an output of attention."""
    return (
        HAS_TRITON
        and output.device.type == "cuda"
        and output.dtype in HEAD_WIDTHS
        and output.shape[-1] in HEAD_WIDTHS[output.dtype]
    )


# Opaque to compilers. A triton_op would be launched by inductor itself; but it must then find out what the kernel
# writes to, copies every input if that fails, and needs Triton to trace a network.
@library.custom_op("pmf::attention_tangent", mutates_args=())
def attention_tangent(
    query: Tensor, key: Tensor, value: Tensor, query_tangent: Tensor, key_tangent: Tensor, value_tangent: Tensor
) -> Tensor:
    """The tangent of attention by one kernel that stores nothing of T x T numbers (pmf/net/attention_kernel.py).

    Args:
        query, key, value: (K, heads, T, d) on a CUDA device, of the dtypes and d of HEAD_WIDTHS.
        query_tangent, key_tangent, value_tangent: the same.

    Returns:
        (K, heads, T, d) of that dtype; in memory tokens stand before heads, so that merging heads copies nothing.
    """
    tangent = _tokens_first(query)
    if torch.cuda.get_device_capability(query.device) < (8, 0):  # Triton starts at Ampere
        duals = (Dual(query, query_tangent), Dual(key, key_tangent), Dual(value, value_tangent))
        output = F.scaled_dot_product_attention(query, key, value)
        return tangent.copy_(written_out_tangent(*duals, output))
    from pmf.net.attention_kernel import launch

    with torch.cuda.device(query.device):
        launch((query, key, value), (query_tangent, key_tangent, value_tangent), tangent)
    return tangent


@attention_tangent.register_fake
def _(query: Tensor, *_: Tensor) -> Tensor:
    return _tokens_first(query)


def _tokens_first(query: Tensor) -> Tensor:
    rows, heads, tokens, width = query.shape
    return query.new_empty(rows, tokens, heads, width).transpose(1, 2)


def written_out_tangent(query: Dual, key: Dual, value: Dual, output: Tensor) -> Tensor:
    """d(P V) = (P * dS - P rowsum(P * dS)) V + P dV, whatever the dtype and the device.

    The sums dq k^T + q dk^T and (P * dS) V + P dV run as one product each over concatenated factors. Of half-precision
    numbers everything is computed in float32, as fused kernels compute it: a score of 50 in bfloat16 is off by up to
    1/8, and its exponential by an eighth.

    Args:
        query, key, value: (K, heads, T, d) and their tangents.
        output: (B, heads, T, d), B >= K: attention's value, of which the last K rows belong to the tangents.

    Returns:
        (K, heads, T, d) of the dtype of ``output``.
    """
    q, k, v = (at_least_float32(part.primal) for part in (query, key, value))
    dq, dk, dv = (at_least_float32(part.tangent) for part in (query, key, value))
    with _without_autocast(q):
        probabilities = _probabilities(q, k)  # (K, heads, T, T)
        rates = torch.cat((dq, q), -1) * q.shape[-1] ** -0.5
        d_scores = rates @ torch.cat((k, dk), -1).transpose(-2, -1)  # (K, heads, T, T)
        weighted = probabilities * d_scores
        total = weighted.sum(-1, keepdim=True)  # (K, heads, T, 1)
        rounded = output.dtype != q.dtype
        if rounded:  # P V of the same P; the fused pass has rounded its own
            weighted -= probabilities * total
        both = torch.cat((weighted, probabilities), -1) @ torch.cat((v, dv), -2)  # (K, heads, T, d)
        if rounded:
            return both.to(output.dtype)
        return both - total * output.detach()[output.shape[0] - both.shape[0] :]


def _probabilities(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1), dim=-1)


def _without_autocast(like: Tensor) -> contextlib.AbstractContextManager[None]:
    device = like.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
