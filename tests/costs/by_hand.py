"""The arithmetic of a step of pixel mean flows with the pixel transformer, layer by layer, to check the counter."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pmf.costs.arithmetic import StepFlops
from pmf.flow.draws import Draws
from pmf.net.layers import Block, PatchOutput, ScalarEmbedding
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.token_transformer import NUM_CONDITION_TOKENS


def step_by_hand(network: PixelTransformer, draws: Draws) -> StepFlops:
    """Operations of a whole micro-batch with tangents carried beside the values and without perceptual losses.

    Args:
        draws: they say how many rows each pass has.
    """
    assert network.v_blocks is not None and network.v_output is not None
    rows = len(draws.t)
    tokens = network.position_embedding.shape[1]
    patches = tokens - NUM_CONDITION_TOKENS
    bottleneck = patches * product(network.patch_embedding.bottleneck.weight)
    patch_embedding = bottleneck + patches * product(network.patch_embedding.expansion.weight)
    embeddings = [module for module in network.children() if isinstance(module, ScalarEmbedding)]
    embed = patch_embedding + sum(map(embedding, embeddings))
    trunk = blocks(network.shared_blocks, tokens)
    head = blocks(network.v_blocks, tokens) + output(network.v_output, patches)
    value = embed + trunk + 2 * head
    # Gradients of weights and of inputs; pixels and sinusoids need none.
    backward = 2 * value - bottleneck - sum(product(module.hidden.weight) for module in embeddings)
    # Only the image and the time have tangents. Attention's take five products of the size of a score matrix.
    tangent = patch_embedding + embedding(network.time_embedding) + trunk + head
    tangent += 3 * sum(scores(block, tokens) for block in (*network.shared_blocks, *network.u_blocks))
    with_tangent = rows - draws.num_flow_matching
    guidance = with_tangent + len(draws.unconditional_rows)
    return StepFlops(
        without_gradients=guidance * (embed + trunk + head) + with_tangent * tangent,
        forward=rows * value,
        backward=rows * backward,
    )


def product(weight: torch.Tensor) -> int:
    return 2 * weight.numel()


def embedding(module: ScalarEmbedding) -> int:
    return product(module.hidden.weight) + product(module.output.weight)


def output(module: PatchOutput, patches: int) -> int:
    return patches * product(module.linear.weight)


def scores(block: nn.Module, tokens: int) -> int:
    """One product of tokens x tokens x width."""
    assert isinstance(block, Block)
    return 2 * tokens * tokens * block.norm1.weight.numel()


def blocks(modules: Iterable[nn.Module], tokens: int) -> int:
    count = 0
    for block in modules:
        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        count += tokens * sum(product(linear.weight) for linear in linears) + 2 * scores(block, tokens)
    return count
