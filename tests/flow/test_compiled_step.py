"""The compiled step is trusted because it equals the literal one, tangents included, for changing numbers of rows."""

from __future__ import annotations

import contextlib
import functools
import shutil

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pmf.perceptual.distances import PerceptualDistances
from tests.flow.methods import PADDED
from tests.flow.small_step import CLASSES, EXACT, gradients, inputs, with_drops, worst_relative_error
from tests.perceptual.published import random_convnext, random_lpips

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPU needs a C++ compiler (g++)"),
    pytest.mark.filterwarnings("ignore"),  # inductor's own
]


@pytest.fixture(autouse=True)
def _working_attention():
    """In torch 2.11 inductor's backward pass of fused attention fails on a CPU in float64 (and only there)."""
    with contextlib.nullcontext() if torch.__version__ >= (2, 15) else sdpa_kernel(SDPBackend.MATH):
        yield


class SmallDistance(torch.nn.Module):
    """Of the features of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3).requires_grad_(False)

    def forward(self, prediction: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.convolution(image)
        return (self.convolution(prediction) - target).square().sum((1, 2, 3))


STATIC = "static shapes, padded and checkpointed"


# "aot_eager" traces, differentiates and counts graphs as the default does, and spares the machine code.
@pytest.mark.parametrize(
    "method", ["pmf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("imf", "meanflow"))]
)
@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        (STATIC, "aot_eager"),
        pytest.param(STATIC, "inductor", marks=pytest.mark.slow),
        pytest.param("any number of rows", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_gradients_equal_the_literal_ones_and_recompilations_are_bounded(kind, backend, method, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    images, labels, standard = inputs()
    chosen = PADDED[method]
    options = chosen.options(derivative="dual")
    static_shapes = kind == STATIC
    objective = chosen.kind(options, num_classes=CLASSES, static_shapes=static_shapes, few_sizes=True)
    compiled, plain = chosen.network(), chosen.network()
    compiled.compile_blocks(static_shapes=static_shapes)
    objective.compile_losses()
    if static_shapes:
        compiled.checkpoint_blocks()
    start, counts = torch._dynamo.utils.counters["stats"]["unique_graphs"], []
    # Every number of dropped labels changes how many rows the guidance pass needs.
    for dropped in (0, 3, 6, 1, 4, 8):
        standard_draws = with_drops(standard, dropped)
        ours = objective.loss(compiled, images, labels, objective.shape(standard_draws)).total
        theirs = chosen.literal(plain, options, images, labels, standard_draws)
        assert worst_relative_error(gradients(ours, compiled), gradients(theirs, plain)) < EXACT
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - start)
    # Of the blocks, with static shapes: guidance, u with tangent, v, and what each of the latter two records again for
    # its gradients; otherwise one graph for each kind of pass and for its change to a dynamic number of rows. As many
    # around them: embedding, output, and the four (MeanFlow: three) parts of the loss.
    assert counts[-1] == counts[0 if static_shapes else 2] <= 17, "later row counts must not compile again"


@pytest.mark.parametrize(
    ("name", "create", "backend"),
    [
        ("small", SmallDistance, "aot_eager"),
        pytest.param("lpips", random_lpips, "aot_eager", marks=pytest.mark.slow),
        pytest.param("convnext", random_convnext, "aot_eager", marks=pytest.mark.slow),
        pytest.param("lpips", random_lpips, "inductor", marks=pytest.mark.slow),
        pytest.param("convnext", random_convnext, "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_perceptual_network_gives_the_gradients_of_the_eager_one(name, create, backend, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    distances = PerceptualDistances({name: create().double()}, {name: 1.0}, 32)
    generator = torch.Generator().manual_seed(0)
    cases = [
        [
            torch.rand(rows, *shape, generator=generator, dtype=torch.float64)
            for shape in ((3, 32, 32), (3, 32, 32), (4,))
        ]
        for rows in (4, 2, 6)
    ]

    def gradient_of(case: list[torch.Tensor]) -> torch.Tensor:
        prediction = case[0].clone().requires_grad_()
        return torch.autograd.grad(distances(prediction, *case[1:])[name].sum(), prediction)[0]

    expected = [gradient_of(case) for case in cases]
    start = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    distances.compile_networks()
    for case, theirs in zip(cases, expected, strict=True):
        ours = gradient_of(case)
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-9  # float64; inductor adds up in another order
    # The crop and the network: for four rows, then for any number.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - start == 4
