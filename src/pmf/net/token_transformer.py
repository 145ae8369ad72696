"""Transformers whose conditions enter in context, as tokens in front of the patches (iMF; pMF, section 4).

There are tokens of the class, the guidance scale, the guidance interval and the time. A shared trunk feeds two heads of
equal depth, u (average velocity) and v (instantaneous velocity). How the output of a head becomes a velocity is defined
in pmf/flow/parameterization.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pmf.net.base import BaseNetwork
from pmf.net.dual import Dual, Operand, add, concatenate, map_linear, over_tokens, value_of
from pmf.net.interface import Conditions, HeadOutputs, Heads, Tangent
from pmf.net.layers import Block, PatchOutput, ScalarEmbedding
from pmf.net.positions import Rotation

NUM_CLASS_TOKENS = 8
NUM_GUIDANCE_TOKENS = 4
NUM_INTERVAL_TOKENS = 2  # at either end
NUM_TIME_TOKENS = 4
NUM_CONDITION_TOKENS = NUM_CLASS_TOKENS + NUM_GUIDANCE_TOKENS + 2 * NUM_INTERVAL_TOKENS + NUM_TIME_TOKENS


class TokenTransformer(BaseNetwork):
    """The trunk, the heads and the condition tokens; a subclass says how patches enter and how positions are told.

    It draws its initial weights at the end of its constructor, by :meth:`_initialize`.
    """

    carries_tangents = True
    training_only = ("v_blocks.", "v_output.")
    compiled_methods = ("_embed", "_decode")

    def __init__(
        self,
        *,
        patch_embedding: nn.Module,
        rotation: Rotation,
        patch_size: int,
        channels: int,
        num_classes: int,
        width: int,
        depth: int,
        head_depth: int,
        num_heads: int,
        mlp_width: int | None,
        inference: bool,
    ) -> None:
        """Build without initial weights.

        Args:
            patch_embedding: of images (B, C, H, W) as (B, patches, width).
            rotation: of queries and keys of all tokens.
            depth: number of blocks between the patches and the output of one head, its ``head_depth`` blocks included.
            head_depth: number of blocks of each head.
            mlp_width: hidden width of the SwiGLU; None is the papers' int(8 / 3 width).
            inference: leave out the v head, which only training uses.
        """
        super().__init__()
        self.heads = "u" if inference else "uv"
        mlp_width = mlp_width or int(width * 8 / 3)

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, num_heads, mlp_width) for _ in range(count))

        def tokens(count: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(1, count, width))

        self.patch_embedding = patch_embedding
        self.time_embedding = ScalarEmbedding(width)
        self.guidance_embedding = ScalarEmbedding(width)
        self.interval_start_embedding = ScalarEmbedding(width)
        self.interval_end_embedding = ScalarEmbedding(width)
        self.label_embedding = nn.Embedding(num_classes + 1, width)
        self.class_tokens = tokens(NUM_CLASS_TOKENS)
        self.guidance_tokens = tokens(NUM_GUIDANCE_TOKENS)
        self.interval_start_tokens = tokens(NUM_INTERVAL_TOKENS)
        self.interval_end_tokens = tokens(NUM_INTERVAL_TOKENS)
        self.time_tokens = tokens(NUM_TIME_TOKENS)
        self.rotation = rotation
        self.shared_blocks = blocks(depth - head_depth)
        self.u_blocks = blocks(head_depth)
        self.u_output = PatchOutput(width, patch_size, channels)
        self.v_blocks = None if inference else blocks(head_depth)
        self.v_output = None if inference else PatchOutput(width, patch_size, channels)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        """Draw the initial weights, in the order of ``named_parameters``; None is torch's global generator.

        ==========================================  =================================
        linear layers of blocks                     N(0, (0.32 / sqrt(fan_in))^2)
        linear layers of scalar embeddings          N(0, 1 / fan_in)
        label table, condition tokens               N(0, 1 / width)
        position embedding, where there is one      N(0, 0.02^2)
        patch convolutions                          Xavier uniform, a patch counted as one input vector
        output layers, gates, biases                0
        norms                                       1
        ==========================================  =================================
        """
        width = self.class_tokens.shape[-1]
        for name, parameter in self.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            elif "_output." in name or name.endswith(("gate", ".bias")):
                parameter.zero_()
            elif name == "position_embedding":
                parameter.normal_(0, 0.02, generator=generator)
            elif name.endswith("tokens") or name.startswith("label_embedding"):
                parameter.normal_(0, width**-0.5, generator=generator)
            elif name.startswith("patch_embedding"):
                nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
            else:
                scale = 0.32 if "blocks." in name else 1.0
                parameter.normal_(0, scale / math.sqrt(parameter.shape[1]), generator=generator)

    def forward(
        self, z: Tensor, conditions: Conditions, heads: Heads = "uv", tangent: Tangent | None = None
    ) -> HeadOutputs:
        """Run the heads that are asked for.

        Args:
            z: (B, C, H, W), noisy.
            conditions: all but t are used.
            tangent: if given, u's derivative along it comes too, for the last K rows; its t is not used.

        Raises:
            ValueError: the v head is asked of a network built for inference.
        """
        if self.v_blocks is None and "v" in heads:
            raise ValueError("this network was built for inference and has no v head")
        image: Operand = z
        h: Operand = conditions.h
        if tangent is not None:
            image, h = Dual(z, tangent.z), Dual(conditions.h, tangent.h)
        x = self._embed(image, h, conditions)  # (B, T, width)
        for block in self.shared_blocks:
            x = block(x, self.rotation)
        outputs = HeadOutputs()
        if "u" in heads:
            u = self._run_head(x, self.u_blocks, self.u_output, z.dtype)
            outputs.u = value_of(u)
            outputs.u_tangent = u.tangent if isinstance(u, Dual) else None
        if "v" in heads:
            outputs.v = value_of(self._run_head(value_of(x), self.v_blocks, self.v_output, z.dtype))
        return outputs

    def _embed(self, image: Operand, h: Operand, conditions: Conditions) -> Operand:
        """Condition tokens, then patches: (B, T, width)."""
        embedded = [
            (self.class_tokens, self.label_embedding(conditions.labels)),
            (self.guidance_tokens, self.guidance_embedding(1 - 1 / conditions.omega)),
            (self.interval_start_tokens, self.interval_start_embedding(conditions.t_min)),
            (self.interval_end_tokens, self.interval_end_embedding(conditions.t_max)),
            (self.time_tokens, self.time_embedding(h)),
        ]
        groups = [add(over_tokens(embedding), tokens) for tokens, embedding in embedded]
        return concatenate([*groups, self.patch_embedding(image)], dim=1)

    def _run_head(
        self, x: Operand, blocks: nn.ModuleList | None, output: PatchOutput | None, dtype: torch.dtype
    ) -> Operand:
        assert blocks is not None and output is not None
        for block in blocks:
            x = block(x, self.rotation)
        return self._decode(x, output, dtype)

    def _decode(self, x: Operand, output: PatchOutput, dtype: torch.dtype) -> Operand:
        """The patches of all tokens, (B, T, width), as images of that dtype, (B, C, H, W)."""
        patches = map_linear(lambda tokens: tokens[:, NUM_CONDITION_TOKENS:], x)
        return map_linear(lambda image: image.to(dtype), output(patches))
