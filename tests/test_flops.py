"""The analytic count against torch's, and against the paper's networks."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pmf.config import ObjectiveConfig
from pmf.flops import RowShares, StepFlops, expected_shares, step_flops
from pmf.flow.draws import draw_standard, shape_draws
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import create_network


@pytest.mark.parametrize("data_proportion", [0.25, 0.5])
def test_the_count_is_torchs_to_the_last_operation(data_proportion):
    rows, settings = 8, ObjectiveConfig(data_proportion=data_proportion)
    network = PixelTransformer(
        image_size=16, patch_size=4, channels=3, num_classes=5, width=48, depth=5, head_depth=2, num_heads=4
    )
    images = torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(rows) % 5
    draws = shape_draws(draw_standard(images, torch.Generator().manual_seed(1)), settings, 1.0)
    objective = PixelMeanFlow(settings, num_classes=5)
    # Attention written out: a fused backward pass computes the scores twice.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective.loss(network, images, labels, draws).total.backward()
    tangent = rows - draws.num_flow_matching
    shares = RowShares(guidance=(tangent + len(draws.unconditional_rows)) / rows, tangent=tangent / rows)
    assert step_flops(network, shares).total * rows == counter.get_total_flops()


def test_expected_shares_are_those_of_the_draws():
    shares = expected_shares(ObjectiveConfig())
    assert shares.tangent == 0.5
    # FM rows need v_u unless their label is dropped: 0.5 - 0.1 = 0.4. Of the others, those with t in the interval.
    t = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    normal = torch.special.ndtri(t) * 0.8 + 0.8
    larger = torch.sigmoid(normal).max(0).values
    inside = ((2 * larger - 1).clamp(0, 1) - 1).abs() * (2 * larger).clamp(0, 1)  # t_max in U[.5, 1], t_min in U[0, .5]
    assert shares.guidance == pytest.approx(0.5 + 0.4 + 0.5 * float(inside.mean()), abs=0.01)  # 65,536 rows


def test_paper_sizes_need_what_the_method_says():
    with torch.device("meta"):
        network = create_network("pmf_b_16", image_size=256, num_classes=1000)
    flops = step_flops(network, expected_shares(ObjectiveConfig()))
    assert flops.total == pytest.approx(410e9, rel=0.02)
    assert str(flops).startswith("4")
    assert flops.backward == pytest.approx(2 * flops.value, rel=0.01)


def test_the_line_names_only_parts_that_there_are():
    assert str(StepFlops(guidance=1e9, value=2e9, tangent=0.5e9, backward=4e9)) == (
        "7.5 GFLOP an image (guidance 1, value 2, tangent 0.5, backward 4)"
    )
