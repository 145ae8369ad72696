"""The diffusion transformer of MeanFlow (DiT with adaLN-Zero, 2212.09748; official models/models_dit.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pmf.net.adaptive_layers import AdaptiveBlock, AdaptiveOutput
from pmf.net.base import BaseNetwork
from pmf.net.dual import Dual, Operand, add, map_linear, silu, value_of
from pmf.net.interface import Conditions, HeadOutputs, Heads, Tangent
from pmf.net.layers import PatchEmbedding, ScalarEmbedding
from pmf.net.positions import sincos_positions


class DiffusionTransformer(BaseNetwork):
    """Latents (or small images), t, h and labels to the average velocity u, the only head.

    Guidance is not among the conditions: MeanFlow trains it in.
    """

    carries_tangents = True
    compiled_methods = ("_embed", "_decode")
    position_embedding: Tensor

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        num_classes: int,
        width: int,
        depth: int,
        num_heads: int,
        inference: bool = False,  # noqa: ARG002
        generator: torch.Generator | None = None,
    ) -> None:
        """Build and initialise.

        Args:
            depth: number of blocks.
            inference: changes nothing, as there is no part that only training uses.
            generator: source of the initial weights; None is torch's global one.
        """
        super().__init__()
        self.patch_embedding = PatchEmbedding(channels, patch_size, width)
        self.time_embedding = ScalarEmbedding(width)
        self.duration_embedding = ScalarEmbedding(width)
        self.label_embedding = nn.Embedding(num_classes + 1, width)
        self.register_buffer(
            "position_embedding", sincos_positions(width, image_size // patch_size), persistent=False
        )  # (patches, width)
        self.blocks = nn.ModuleList(AdaptiveBlock(width, num_heads, 4 * width) for _ in range(depth))
        self.output = AdaptiveOutput(width, patch_size, channels)
        self._initialize(generator)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        """Draw the initial weights.

        ==========================================  =================================
        linear layers of blocks                     Xavier uniform
        patch convolution                           Xavier uniform, a patch counted as one input vector
        scalar embeddings, label table              N(0, 0.02^2)
        modulations, output layer, biases           0
        ==========================================  =================================
        """
        for name, parameter in self.named_parameters():
            if "modulation." in name or name.startswith("output.") or name.endswith(".bias"):
                parameter.zero_()
            elif name.startswith(("time_embedding", "duration_embedding", "label_embedding")):
                parameter.normal_(0, 0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)

    def forward(
        self, z: Tensor, conditions: Conditions, heads: Heads = "u", tangent: Tangent | None = None
    ) -> HeadOutputs:
        """Compute u.

        Args:
            z: (B, C, H, W), noisy.
            conditions: t, h and labels are used.
            tangent: if given, u's derivative along it comes too, for the last K rows.

        Raises:
            ValueError: another head than u is asked for.
        """
        if heads != "u":
            raise ValueError("this network has no v head")
        image: Operand = z
        t: Operand = conditions.t
        h: Operand = conditions.h
        if tangent is not None:
            image, t, h = Dual(z, tangent.z), Dual(conditions.t, tangent.t), Dual(conditions.h, tangent.h)
        x, condition = self._embed(image, t, h, conditions.labels)
        for block in self.blocks:
            x = block(x, condition)
        u = self._decode(x, condition, z.dtype)
        return HeadOutputs(u=value_of(u), u_tangent=u.tangent if isinstance(u, Dual) else None)

    def _embed(self, image: Operand, t: Operand, h: Operand, labels: Tensor) -> tuple[Operand, Operand]:
        """Patches, (B, patches, width), and what all blocks are told, (B, width)."""
        x = add(self.patch_embedding(image), self.position_embedding)
        scalars = add(self.time_embedding(t), self.duration_embedding(h))
        return x, silu(add(scalars, self.label_embedding(labels)))

    def _decode(self, x: Operand, condition: Operand, dtype: torch.dtype) -> Operand:
        """Patches, (B, patches, width), as images of that dtype, (B, C, H, W)."""
        return map_linear(lambda image: image.to(dtype), self.output(x, condition))
