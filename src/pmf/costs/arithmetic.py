"""How much arithmetic a training step needs, counted by hand: what MFU (model FLOPs utilisation) is measured against.

Only products count, two operations for each multiply-add, and only those that the exact step cannot do without: rows
that are skipped, zero padding, and what a fused attention computes again in its backward pass are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from pmf.flow.draws import StandardDraws, draw_scalars, shape_draws
from pmf.flow.options import PixelMeanFlowOptions
from pmf.net.layers import Block, PatchOutput, ScalarEmbedding
from pmf.net.pixel_transformer import NUM_CONDITION_TOKENS, PixelTransformer
from pmf.perceptual.distances import PerceptualDistances

# Peak of dense half-precision products, operations per second (the makers' data sheets); the first match counts.
PEAK_FLOPS: dict[str, float] = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
}

NUM_ROWS = 2**16
"""Rows that shares are counted on; the standard error of a share is 0.002 at most."""


@dataclass(frozen=True, kw_only=True)
class RowShares:
    """Rows of each pass of the step, as shares of the batch.

    Attributes:
        guidance: rows of the guidance pass (v_c and v_u), at most 2.
        tangent: rows with r < t.
        perceptual: rows under the perceptual losses.
    """

    guidance: float
    tangent: float
    perceptual: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Floating point operations of a training step for each image, by part."""

    guidance: float
    value: float
    tangent: float
    backward: float
    perceptual: float = 0.0

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(vars(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {flops / 1e9:.3g}" for name, flops in vars(self).items() if flops)
        return f"{self.total / 1e9:.4g} GFLOP an image ({parts})"


def step_flops(network: nn.Module, shares: RowShares, perceptual: float = 0.0) -> StepFlops:
    """Count a step's operations for each image.

    Args:
        perceptual: those of the perceptual losses for each row that is under them; see :func:`perceptual_flops`.
    """
    assert isinstance(network, PixelTransformer)
    assert network.v_blocks is not None and network.v_output is not None, "a network for training"
    tokens = network.position_embedding.shape[1]
    patches = tokens - NUM_CONDITION_TOKENS
    bottleneck = patches * _product(network.patch_embedding.bottleneck.weight)
    patch_embedding = bottleneck + patches * _product(network.patch_embedding.expansion.weight)
    embeddings = [module for module in network.children() if isinstance(module, ScalarEmbedding)]
    embed = patch_embedding + sum(map(_embedding, embeddings))
    trunk = _blocks(network.shared_blocks, tokens)
    head = _blocks(network.v_blocks, tokens) + _output(network.v_output, patches)
    value = embed + trunk + 2 * head
    # Gradients of weights and of inputs; pixels and sinusoids need none.
    backward = 2 * value - bottleneck - sum(_product(module.hidden.weight) for module in embeddings)
    # Only the image and the time have tangents. Attention's take five products of the size of a score matrix.
    tangent = patch_embedding + _embedding(network.time_embedding) + trunk + head
    tangent += 3 * sum(_scores(block, tokens) for block in (*network.shared_blocks, *network.u_blocks))
    return StepFlops(
        guidance=shares.guidance * (embed + trunk + head),
        value=value,
        tangent=shares.tangent * tangent,
        backward=backward,
        perceptual=shares.perceptual * perceptual,
    )


def perceptual_flops(distances: PerceptualDistances, channels: int) -> int:
    """Forward and backward of the perceptual losses for one row, counted by torch without computing anything.

    Both images pass forward; the gradient of the prediction costs as much as its own pass, because weights are frozen.
    """
    # For runs with perceptual losses alone: these bring sympy and Triton.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    device = next(parameter.device for network in distances.networks.values() for parameter in network.parameters())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
        # Images of the crop's own size: to resample larger ones takes a thousandth of what the networks do.
        image = torch.zeros(1, channels, distances.crop_size, distances.crop_size, device=device)
        distances(image, image, torch.zeros(1, 4, device=device))
    return counter.get_total_flops() * 3 // 2


def expected_shares(
    settings: PixelMeanFlowOptions, perceptual_max_t: float, *, micro_batch_size: int = NUM_ROWS
) -> RowShares:
    """Average shares under the distributions of the draws, from about 65,536 rows.

    Args:
        perceptual_max_t: rows with t below it are under the perceptual losses, if there are any.
        micro_batch_size: rows of a micro-batch, whose share of flow-matching rows is rounded down to whole rows.
    """
    flow_matching = int(micro_batch_size * settings.data_proportion) / micro_batch_size
    rows = math.ceil(NUM_ROWS / micro_batch_size) * micro_batch_size
    draws = shape_draws(
        StandardDraws(
            **vars(draw_scalars(rows, torch.Generator().manual_seed(0))),
            normal_e=torch.zeros(rows, 0, 0, 0),
            uniform_crop=torch.zeros(rows, 4),
        ),
        settings.model_copy(update={"data_proportion": flow_matching}),
        perceptual_max_t,
    )
    tangent = 1 - draws.num_flow_matching / rows
    return RowShares(
        guidance=tangent + len(draws.unconditional_rows) / rows,
        tangent=tangent,
        perceptual=len(draws.perceptual_rows) / rows,
    )


def peak_flops(device: torch.device) -> float | None:
    """Of one device in half precision; None where no peak is known (on a CPU, say)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def _product(weight: torch.Tensor) -> int:
    return 2 * weight.numel()


def _embedding(module: ScalarEmbedding) -> int:
    return _product(module.hidden.weight) + _product(module.output.weight)


def _output(module: PatchOutput, patches: int) -> int:
    return patches * _product(module.linear.weight)


def _scores(block: Block, tokens: int) -> int:
    """One product of tokens x tokens x width."""
    return 2 * tokens * tokens * block.norm1.weight.numel()


def _blocks(blocks: nn.ModuleList, tokens: int) -> int:
    linears = [module for module in blocks.modules() if isinstance(module, nn.Linear)]
    products = tokens * sum(_product(linear.weight) for linear in linears)
    return products + sum(2 * _scores(block, tokens) for block in blocks if isinstance(block, Block))
