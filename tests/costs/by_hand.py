"""The arithmetic of steps with the pixel and the diffusion transformer, layer by layer, to check the counter."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pmf.costs.arithmetic import StepFlops
from pmf.flow.draws import Draws
from pmf.flow.mean_flow import GuidedRows
from pmf.net.diffusion_transformer import DiffusionTransformer
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


def mean_flow_by_hand(network: DiffusionTransformer, draws: GuidedRows) -> StepFlops:
    """The same of MeanFlow with both of the network's own velocities in its target."""
    rows, width = len(draws.t), network.label_embedding.weight.shape[1]
    patches = network.position_embedding.shape[0]
    linears = {name: m.weight for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    # Scalars and modulations are computed once a row, all else once a patch.
    count = {
        name: product(w) * (1 if "embedding." in name or "modulation" in name else patches)
        for name, w in linears.items()
    }
    count["patch_embedding.projection"] = patches * product(linears["patch_embedding.projection"])
    all_scores = len(network.blocks) * 2 * patches * patches * width  # one product of tokens x tokens x width a block
    value = sum(count.values()) + 2 * all_scores
    unneeded = ("patch_embedding.projection", "time_embedding.hidden", "duration_embedding.hidden")
    with_tangent = rows - draws.num_flow_matching
    # v_u, and v_c where training does not compute it.
    guidance = int(draws.guided.sum() + draws.guided[draws.num_flow_matching :].sum())
    return StepFlops(
        # All conditions have tangents. Attention's take five products of the size of a score matrix.
        without_gradients=guidance * value + with_tangent * (value + 3 * all_scores),
        forward=rows * value,
        backward=rows * (2 * value - sum(count[name] for name in unneeded)),
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
