"""The two-headed pixel transformer of pMF (paper section 4; official models/pmfDiT.py)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pmf.net.dual import Operand, add
from pmf.net.interface import Conditions
from pmf.net.layers import BottleneckPatchEmbedding
from pmf.net.positions import Rotation, grid_angles
from pmf.net.token_transformer import NUM_CONDITION_TOKENS, TokenTransformer


class PixelTransformer(TokenTransformer):
    """Images and conditions to images; knows nothing of losses, guidance or time sampling.

    Positions are told by a learned table of all tokens and by a 2-D rotation of the patches alone.
    """

    patch_embedding: BottleneckPatchEmbedding

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        num_classes: int,
        width: int,
        depth: int,
        head_depth: int,
        num_heads: int,
        mlp_width: int | None = None,
        bottleneck: int = 128,
        inference: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Build and initialise; see :class:`TokenTransformer` for what is not explained here.

        Args:
            bottleneck: channels between the two linear maps that embed a patch.
            generator: source of the initial weights; None is torch's global one.
        """
        grid = image_size // patch_size
        super().__init__(
            patch_embedding=BottleneckPatchEmbedding(channels, patch_size, bottleneck, width),
            rotation=Rotation(partial(grid_angles, width // num_heads, grid), num_still=NUM_CONDITION_TOKENS),
            patch_size=patch_size,
            channels=channels,
            num_classes=num_classes,
            width=width,
            depth=depth,
            head_depth=head_depth,
            num_heads=num_heads,
            mlp_width=mlp_width,
            inference=inference,
        )
        self.position_embedding = nn.Parameter(torch.empty(1, NUM_CONDITION_TOKENS + grid * grid, width))
        self._initialize(generator)

    def _embed(self, image: Operand, h: Operand, conditions: Conditions) -> Operand:
        return add(super()._embed(image, h, conditions), self.position_embedding)
