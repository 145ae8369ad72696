"""The layers of adaLN-Zero transformers (DiT, 2212.09748): a condition shifts, scales and gates what they do.

The condition is one vector per sample, (B, width), and may have a tangent, as everything else may.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from pmf.net.attention import attention
from pmf.net.base import BaseBlock
from pmf.net.dual import (
    Linear,
    Operand,
    add,
    at_least_float32,
    gelu_tanh,
    map_linear,
    modulate,
    multiply,
    over_tokens,
    scaled,
    split,
)
from pmf.net.layers import merge_heads, unpatchify
from pmf.net.norms import LayerNorm


class FusedAttention(nn.Module):
    """Multi-head self-attention with biases, whose queries, keys and values come from one product."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.output = Linear(width, width)

    def forward(self, x: Operand) -> Operand:
        """Attend: (B, T, width) to the same shape."""
        parts = split(self.qkv(x), [self.output.in_features] * 3)  # (B, T, width)
        query, key, value = (map_linear(self._split_heads, part) for part in parts)  # (B, heads, T, d)
        return self.output(map_linear(merge_heads, attention(query, key, value)))

    def _split_heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (heads d) -> b heads t d", heads=self.num_heads)


class MLP(nn.Module):
    """down(gelu(up(x))), with biases and the tanh form of GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Operand) -> Operand:
        """Apply to each token: (B, T, width) to the same shape."""
        return self.down(gelu_tanh(self.up(x)))


class Modulation(Linear):
    """What a condition does to a layer: ``parts`` vectors for each sample, all zero at the start."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width, parts * width)
        self.parts = parts

    def split(self, condition: Operand) -> list[Operand]:
        """From (B, width), the vectors, each (B, width); float32 at least, as they are added to 1 and to sums."""
        together = map_linear(at_least_float32, scaled(self, condition))
        return split(together, [self.in_features] * self.parts)


class AdaptiveBlock(BaseBlock):
    """Transformer block whose norms have no weights of their own: the condition gives them, and the branches' gates."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, affine=False)
        self.attention = FusedAttention(width, num_heads)
        self.mlp = MLP(width, mlp_width)
        self.modulation = Modulation(width, 6)

    def body(self, x: Operand, condition: Operand) -> Operand:
        """Add both branches.

        Args:
            x: (B, T, width).
            condition: (B, width), after its SiLU.

        Returns:
            (B, T, width).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation.split(condition)
        attended = scaled(self.attention, modulate(self.norm(x), shift1, scale1))
        x = add(x, multiply(attended, over_tokens(gate1)))
        lifted = scaled(self.mlp, modulate(self.norm(x), shift2, scale2))
        return add(x, multiply(lifted, over_tokens(gate2)))


class AdaptiveOutput(nn.Module):
    """Decoder of patch tokens: a norm that the condition shifts and scales, and a linear layer."""

    def __init__(self, width: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = LayerNorm(width, affine=False)
        self.modulation = Modulation(width, 2)
        self.linear = Linear(width, patch_size * patch_size * channels)

    def forward(self, tokens: Operand, condition: Operand) -> Operand:
        """Decode (B, patches, width), given (B, width) after its SiLU, to (B, C, H, W)."""
        shift, scale = self.modulation.split(condition)
        return unpatchify(scaled(self.linear, modulate(self.norm(tokens), shift, scale)), self.patch_size)
