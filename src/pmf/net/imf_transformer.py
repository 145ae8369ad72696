"""The two-headed transformer of improved MeanFlow (iMF, 2512.02012; official models/imfDiT.py)."""

from __future__ import annotations

from functools import partial

import torch

from pmf.net.layers import PatchEmbedding
from pmf.net.positions import Rotation, sequence_angles
from pmf.net.token_transformer import NUM_CONDITION_TOKENS, TokenTransformer


class ImfTransformer(TokenTransformer):
    """Latents (or small images) and conditions to velocities.

    Positions are told by a 1-D rotation alone: the condition tokens stand at 0, 1, 2, ..., and the patches follow, row
    by row.
    """

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
        inference: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Build and initialise; see :class:`TokenTransformer` for what is not explained here.

        Args:
            generator: source of the initial weights; None is torch's global one.
        """
        length = NUM_CONDITION_TOKENS + (image_size // patch_size) ** 2
        super().__init__(
            patch_embedding=PatchEmbedding(channels, patch_size, width),
            rotation=Rotation(partial(sequence_angles, width // num_heads, length)),
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
        self._initialize(generator)
