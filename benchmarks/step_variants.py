"""The ways to take the training step that are compared: the literal one, ours with each derivative, and compiled."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.environment import synchronize
from benchmarks.reference_step import reference_step
from pmf.flow.draws import StandardDraws, draw_scalars, draw_standard
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import create_network
from pmf.net.token_transformer import NUM_CONDITION_TOKENS

NUM_CLASSES = 1000
VARIANTS = ("literal", "jvp", "dual", "compiled")
GLOBAL_BATCH = 1024  # whose rows are dealt to micro-batches
LITERAL_IMAGES = 16  # at most: of B/16 at 256 pixels it keeps 1.4 GiB for each
SMALL_NETWORK = {"image_size": 64, "patch_size": 16, "width": 48, "depth": 4, "head_depth": 2, "num_heads": 4}


class Step:
    """One variant of the step over fresh draws each time."""

    def __init__(self, variant: str, network: PixelTransformer, batch_size: int, device: str, autocast: bool) -> None:
        self.variant = variant
        self.network = network
        self.autocast = autocast
        self.settings = PixelMeanFlowOptions(derivative="jvp" if variant == "jvp" else "dual")
        self.objective = PixelMeanFlow(self.settings, num_classes=NUM_CLASSES)
        generator = torch.Generator().manual_seed(0)
        side = image_size(network)
        dtype = next(network.parameters()).dtype
        self.images = (torch.rand(batch_size, 3, side, side, generator=generator, dtype=dtype) * 2 - 1).to(device)
        self.labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator).to(device)

    def loss(self, standard: StandardDraws) -> Tensor:
        """Forward only."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.autocast):
            if self.variant == "literal":
                step = reference_step(self.network, self.settings, NUM_CLASSES, self.images, self.labels, standard)
                return step.loss
            draws = self.objective.shape(standard)
            return self.objective.loss(self.network, self.images, self.labels, draws).total

    def draws(self, seed: int) -> StandardDraws:
        """Those of one micro-batch of a global batch."""
        generator, rows = torch.Generator().manual_seed(seed), len(self.images)
        count = max(1, GLOBAL_BATCH // rows)
        scalars = draw_scalars(count * rows, generator, self.images.dtype)
        return draw_standard(self.images, generator, self.objective.deal(scalars, count, [0])[0])

    def guided_rows(self, seed: int) -> int:
        """How many rows need the unconditional velocity: the guidance pass has another shape for each number."""
        return len(self.objective.shape(self.draws(seed)).unconditional_rows)

    def run(self, seed: int) -> float:
        """Forward and backward; seconds."""
        standard = self.draws(seed)
        synchronize(self.images.device.type)
        started = time.perf_counter()
        self.loss(standard).backward()
        synchronize(self.images.device.type)
        seconds = time.perf_counter() - started
        self.network.zero_grad()
        return seconds


def build_network(settings: dict[str, Any], device: str) -> PixelTransformer:
    """A network by name or by shape, with gates open: at the usual start half of the work multiplies zeros."""
    torch.manual_seed(0)
    if "name" in settings:
        created = create_network(settings["name"], image_size=settings["image_size"], num_classes=NUM_CLASSES)
        assert isinstance(created, PixelTransformer)
        network = created
    else:
        network = PixelTransformer(channels=3, num_classes=NUM_CLASSES, **settings)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(0.1)
            elif "_output.linear" in name:
                parameter.normal_(0, 0.02)
    return network.to(device)


def image_size(network: PixelTransformer) -> int:
    """Side of its images, in pixels."""
    patches = network.position_embedding.shape[1] - NUM_CONDITION_TOKENS
    return math.isqrt(patches) * network.patch_embedding.bottleneck.weight.shape[-1]


@contextlib.contextmanager
def only_attention(backend: SDPBackend) -> Iterator[None]:
    """Attention by this backend alone, in what is compiled meanwhile too.

    Torch keeps compiled graphs on disk under a name that does not tell the backends apart, and would hand out one with
    another backend in it (2.11, AOTAutograd's cache).
    """
    with sdpa_kernel(backend), torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def images_of(variant: str, batch_size: int) -> int:
    """How many images a variant is given."""
    return min(batch_size, LITERAL_IMAGES) if variant == "literal" else batch_size


def gradient_error(variant: str, device: str = "cpu") -> float:
    """Largest relative difference of a parameter's gradient to the literal step's, in float64.

    Attention is written out: inductor's backward pass of torch 2.11 for the fused one fails on a CPU in float64.
    """
    network = build_network(SMALL_NETWORK, device).double()
    ours = Step(variant, network, 8, device, autocast=False)
    literal = Step("literal", network, 8, device, autocast=False)
    standard = ours.draws(1)
    parameters = list(network.parameters())
    with only_attention(SDPBackend.MATH):
        expected = torch.autograd.grad(literal.loss(standard), parameters)
        if variant == "compiled":
            network.compile_blocks()
        found = torch.autograd.grad(ours.loss(standard), parameters)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(found, expected, strict=True))
