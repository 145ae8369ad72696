"""Where a token stands: rotary embeddings of queries and keys, and the fixed sin-cos table of patches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pmf.net import products


class Rotation(nn.Module):
    """Rotary position embedding: channels are interleaved complex pairs, and each pair turns with the position.

    Attributes:
        angles: computes the angles anew, (rotated tokens, d / 2) float32 in radians: with values even if this module is
            on the meta device.
    """

    cos: Tensor
    sin: Tensor
    signed_sin: Tensor

    def __init__(self, angles: Callable[[], Tensor], num_still: int = 0) -> None:
        """Compute the table.

        Args:
            num_still: tokens in front of the rotated ones that are not rotated.
        """
        super().__init__()
        self.angles = angles
        rotated = angles()
        table = torch.cat((rotated.new_zeros(num_still, rotated.shape[1]), rotated))  # (T, d / 2)
        self.register_buffer("cos", table.cos(), persistent=False)
        self.register_buffer("sin", table.sin(), persistent=False)
        self.register_buffer("signed_sin", torch.stack((-self.sin, self.sin), -1), persistent=False)  # (T, d / 2, 2)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Rotate queries or keys, (B, T, heads, d), and round them to ``dtype``, for attention: (B, heads, T, d).

        Fused attention lays its output out in memory as its queries are. On GPUs tokens stand there before heads, so
        that nothing is copied to merge the heads; and each number of x is read twice only, so that inductor makes one
        kernel of norm and rotation. Both ways give the same numbers.
        """
        pairs = x.unflatten(-1, (-1, 2))  # (B, T, heads, d / 2, 2)
        if products.suits_gpus(x.device):
            turned = pairs * self.cos[:, None, :, None] + pairs.flip(-1) * self.signed_sin[:, None]
            return turned.flatten(-2).to(dtype).transpose(1, 2)
        real, imaginary = pairs.transpose(1, 2).unbind(-1)
        parts = (real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos)
        return torch.stack(parts, dim=-1).flatten(-2).to(dtype)


def sequence_angles(channels: int, length: int, theta: float = 1e4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Positions 0, 1, 2, ... times the frequencies theta^(-2 i / channels): (length, channels / 2), in radians."""
    exponents = torch.arange(0, channels, 2, dtype=dtype) / channels
    return torch.arange(length, dtype=dtype)[:, None] * theta**-exponents


def grid_angles(channels: int, grid: int) -> Tensor:
    """Angles of grid x grid patches: (patches, channels / 2) float32, in radians.

    The first half of the pairs turns with the row, the second with the column.
    """
    angle = sequence_angles(channels // 2, grid)  # (grid, channels / 4)
    rows = angle[:, None].expand(grid, grid, -1)
    columns = angle[None].expand(grid, grid, -1)
    return torch.cat((rows, columns), -1).flatten(0, 1)


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed embedding of grid x grid patches (MAE's get_2d_sincos_pos_embed): (patches, width) float32.

    Sines, then cosines, of the column fill the first half of the channels, those of the row the second.
    """
    angle = sequence_angles(width // 2, grid, dtype=torch.float64)  # (grid, width / 4)
    waves = torch.cat((angle.sin(), angle.cos()), -1).float()  # (grid, width / 2)
    columns = waves[None].expand(grid, grid, -1)
    rows = waves[:, None].expand(grid, grid, -1)
    return torch.cat((columns, rows), -1).flatten(0, 1)
