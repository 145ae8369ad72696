"""The layers of transformers. They work on tensors and on duals, as the parts that they are made of do."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from pmf.net.attention import attention
from pmf.net.base import BaseBlock
from pmf.net.dual import Conv2d, Linear, Operand, add, map_linear, multiply, scaled, silu, sinusoids, value_of
from pmf.net.norms import RMSNorm
from pmf.net.positions import Rotation
from pmf.net.products import project, project_heads


class Attention(nn.Module):
    """Multi-head self-attention without biases, with RMS-normed and rotated queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width, bias=False)
        self.output = Linear(width, width, bias=False)
        self.query_norm = RMSNorm(width // num_heads)
        self.key_norm = RMSNorm(width // num_heads)

    def forward(self, x: Operand, rotation: Rotation) -> Operand:
        """Attend: (B, T, width) to the same shape."""
        value, query, key = project_heads(x, self.num_heads, self.value, self.query, self.key)  # (B, T, heads, d)
        dtype = value_of(value).dtype

        def rotate(tensor: Tensor) -> Tensor:
            return rotation(tensor, dtype)

        query = map_linear(rotate, self.query_norm(query))  # (B, heads, T, d)
        key = map_linear(rotate, self.key_norm(key))
        value = map_linear(lambda tensor: tensor.transpose(1, 2), value)
        return self.output(map_linear(merge_heads, attention(query, key, value)))  # (B, T, width)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases.

    Inside, the hidden width is rounded up to a multiple of 8 with units that are always 0 (2730 of the L models to
    2736): rows of 2730 half-precision numbers are misaligned for tensor cores.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        extra = -hidden % 8
        self.gate = Linear(width, hidden, bias=False, extra_out=extra)
        self.up = Linear(width, hidden, bias=False, extra_out=extra)
        self.down = Linear(hidden, width, bias=False, extra_in=extra)

    def forward(self, x: Operand) -> Operand:
        """Apply to each token: (B, T, width) to the same shape."""
        gate, up = project(x, self.gate, self.up)
        return self.down(multiply(silu(gate), up))


class Block(BaseBlock):
    """Pre-norm transformer block whose two residual branches are scaled by vectors that start at zero."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = Attention(width, num_heads)
        self.attention_gate = nn.Parameter(torch.zeros(width))
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, mlp_width)
        self.mlp_gate = nn.Parameter(torch.zeros(width))

    def body(self, x: Operand, rotation: Rotation) -> Operand:
        """Add both branches: (B, T, width) to the same shape."""
        attended = scaled(lambda normed: self.attention(normed, rotation), self.norm1(x))
        x = add(x, multiply(attended, self.attention_gate))
        return add(x, multiply(scaled(self.mlp, self.norm2(x)), self.mlp_gate))


class ScalarEmbedding(nn.Module):
    """Embedding of one scalar per sample: 256 sinusoids (cosines first), then a two-layer MLP."""

    frequencies: Tensor

    def __init__(self, width: int, num_sinusoids: int = 256) -> None:
        super().__init__()
        half = num_sinusoids // 2
        exponents = torch.arange(half, dtype=torch.float32) / half
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * exponents), persistent=False)
        self.hidden = Linear(num_sinusoids, width)
        self.output = Linear(width, width)

    def forward(self, x: Operand) -> Operand:
        """Embed (B,) as (B, width)."""
        return self.output(silu(self.hidden(sinusoids(x, self.frequencies))))


class PatchEmbedding(nn.Module):
    """Linear embedding of patches."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.projection = Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, images: Operand) -> Operand:
        """Embed (B, C, H, W) as (B, patches, width)."""
        return map_linear(_flatten_grid, scaled(self.projection, images))


class BottleneckPatchEmbedding(nn.Module):
    """Linear embedding of patches through a narrow bottleneck."""

    def __init__(self, channels: int, patch_size: int, bottleneck: int, width: int) -> None:
        super().__init__()
        self.bottleneck = Conv2d(channels, bottleneck, patch_size, stride=patch_size)
        self.expansion = Conv2d(bottleneck, width, 1)

    def forward(self, images: Operand) -> Operand:
        """Embed (B, C, H, W) as (B, patches, width)."""
        return map_linear(_flatten_grid, scaled(lambda x: self.expansion(self.bottleneck(x)), images))


class PatchOutput(nn.Module):
    """Decoder of patch tokens: RMSNorm and a linear layer that starts at zero."""

    def __init__(self, width: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = RMSNorm(width)
        self.linear = Linear(width, patch_size * patch_size * channels)

    def forward(self, tokens: Operand) -> Operand:
        """Decode (B, patches, width) to (B, C, H, W)."""
        return unpatchify(scaled(self.linear, self.norm(tokens)), self.patch_size)


def unpatchify(x: Operand, patch_size: int) -> Operand:
    """Patches that lie in rows of a square, (B, patches, patch_size^2 C), as images (B, C, H, W)."""

    def arrange(tensor: Tensor) -> Tensor:
        side, p = math.isqrt(tensor.shape[1]), patch_size
        return rearrange(tensor, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=p, q=p)

    return map_linear(arrange, x)


def merge_heads(x: Tensor) -> Tensor:
    """Put the heads' outputs side by side: (B, heads, T, d) to (B, T, width)."""
    return rearrange(x, "b heads t d -> b t (heads d)")


def _flatten_grid(x: Tensor) -> Tensor:
    return rearrange(x, "b d h w -> b (h w) d")
