"""A block of an adaLN-Zero transformer (DiT), made of the public parts, with all of its weights random."""

from __future__ import annotations

import torch
from torch import Tensor

from pmf.net.attention import attention
from pmf.net.base import BaseBlock
from pmf.net.dual import (
    Linear,
    Operand,
    add,
    gelu_tanh,
    map_linear,
    modulate,
    multiply,
    over_tokens,
    scaled,
    silu,
)
from pmf.net.norms import LayerNorm

WIDTH, HEADS, TOKENS = 12, 2, 5


class AdaptiveBlock(BaseBlock):
    """x (B, T, width) and a condition (B, width), both of which may have a tangent."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = Linear(WIDTH, 6 * WIDTH)
        self.norm1 = LayerNorm(WIDTH, affine=False)
        self.query, self.key, self.value, self.output = (Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm2 = LayerNorm(WIDTH, affine=False)
        self.up, self.down = Linear(WIDTH, 4 * WIDTH), Linear(4 * WIDTH, WIDTH)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.4, generator=generator)

    def body(self, x: Operand, condition: Operand) -> Operand:
        six = scaled(self.modulation, silu(condition))
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            map_linear(lambda vectors, place=place: vectors.chunk(6, -1)[place], six) for place in range(6)
        )
        attended = scaled(self.attend, modulate(self.norm1(x), shift1, scale1))
        x = add(x, multiply(attended, over_tokens(gate1)))
        lifted = scaled(self.mlp, modulate(self.norm2(x), shift2, scale2))
        return add(x, multiply(lifted, over_tokens(gate2)))

    def attend(self, x: Operand) -> Operand:
        query, key, value = (map_linear(split_heads, part(x)) for part in (self.query, self.key, self.value))
        return self.output(map_linear(merge_heads, attention(query, key, value)))

    def mlp(self, x: Operand) -> Operand:
        return self.down(gelu_tanh(self.up(x)))


def split_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, heads, T, d)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)  # (B, T, width)
