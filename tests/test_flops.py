"""The analytic count against torch's, and against the paper's networks."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pmf.costs.arithmetic import RowShares, StepFlops, expected_shares, perceptual_flops, step_flops
from pmf.flow.draws import draw_standard, shape_draws
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import create_network
from pmf.perceptual.distances import PerceptualDistances
from pmf.perceptual.lpips import STAGES
from pmf.training.trainer import Trainer
from tests.perceptual.published import random_lpips
from tests.runs import tiny_config


@pytest.mark.parametrize("data_proportion", [0.25, 0.5])
def test_the_count_is_torchs_to_the_last_operation(data_proportion):
    rows, settings = 8, PixelMeanFlowOptions(data_proportion=data_proportion)
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
    shares = expected_shares(PixelMeanFlowOptions(), 0.8)
    assert shares.tangent == 0.5
    # FM rows need v_u unless their label is dropped: 0.5 - 0.1 = 0.4. Of the others, those with t in the interval.
    t = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    normal = torch.special.ndtri(t) * 0.8 + 0.8
    larger = torch.sigmoid(normal).max(0).values
    inside = ((2 * larger - 1).clamp(0, 1) - 1).abs() * (2 * larger).clamp(0, 1)  # t_max in U[.5, 1], t_min in U[0, .5]
    assert shares.guidance == pytest.approx(0.5 + 0.4 + 0.5 * float(inside.mean()), abs=0.01)  # 65,536 rows


@pytest.mark.parametrize(
    ("overrides", "max_t", "batch", "micro"),
    [
        ({}, 0.8, 1024, 128),
        ({"uniform_time_fraction": 0.1, "time_mean": -0.4}, 0.6, 1024, 64),
        ({"label_drop_rows": "any", "label_drop": 0.3, "guidance_max": 1.0}, 1.0, 512, 512),
        ({"data_proportion": 0.5}, 0.3, 240, 5),  # two rows of five
        ({"data_proportion": 0.3, "r_distribution": "zero"}, 0.0, 96, 3),  # none of three
    ],
)
def test_expected_shares_are_those_of_the_steps(overrides, max_t, batch, micro):
    settings = PixelMeanFlowOptions(**overrides)
    objective = PixelMeanFlow(settings, num_classes=5, perceptual_max_t=max_t)
    images, generator = torch.zeros(micro, 1, 1, 1), torch.Generator().manual_seed(1)
    rows, guidance, tangent, perceptual = 0, 0, 0, 0
    while rows < 12_000:
        for scalars in objective.draw_rows(batch, batch // micro, range(batch // micro), generator):
            draws = objective.draw(images, generator, scalars)
            rows += micro
            tangent += micro - draws.num_flow_matching
            guidance += micro - draws.num_flow_matching + len(draws.unconditional_rows)
            perceptual += len(draws.perceptual_rows)
    shares = expected_shares(settings, max_t, micro_batch_size=micro)
    assert shares.tangent == tangent / rows
    # Five standard errors of the difference of a share of 12,000 rows (0.0046) and one of 65,536 (0.002).
    assert shares.guidance == pytest.approx(guidance / rows, abs=0.025)
    assert shares.perceptual == pytest.approx(perceptual / rows, abs=0.025)


@pytest.mark.parametrize("max_t", [0.8, 0.6, 1.0, 0.0])
def test_the_share_of_perceptual_rows_follows_the_threshold(max_t):
    # The larger of two logit-normal times lies below it, or the only one of a flow-matching row.
    below = torch.special.ndtr((torch.tensor(max_t, dtype=torch.float64).logit() - 0.8) / 0.8)
    expected = float(0.5 * below + 0.5 * below.square())
    assert expected_shares(PixelMeanFlowOptions(), max_t).perceptual == pytest.approx(
        expected, abs=0.01
    )  # 5 standard errors


def test_the_trainer_counts_the_rows_of_its_own_micro_batches(tmp_path):
    small = ("training.global_batch_size=15", "training.micro_batch_size=5", "objective.data_proportion=0.5")
    trainer = Trainer(tiny_config(tmp_path / "run", *small))
    AcceleratorState._reset_state(reset_partial_state=True)
    whole = step_flops(trainer.state.network, RowShares(guidance=0.0, tangent=1.0)).tangent
    assert trainer.train_step.flops.tangent == pytest.approx(0.6 * whole, rel=1e-12)  # two flow-matching rows of five


def test_paper_sizes_need_what_the_method_says():
    with torch.device("meta"):
        network = create_network("pmf_b_16", image_size=256, num_classes=1000)
    flops = step_flops(network, expected_shares(PixelMeanFlowOptions(), 0.8))
    assert flops.total == pytest.approx(410e9, rel=0.02)
    assert str(flops).startswith("4")
    assert flops.backward == pytest.approx(2 * flops.value, rel=0.01)


def test_perceptual_networks_count_twice_forward_and_once_backward():
    distances = PerceptualDistances({"lpips": random_lpips()}, {"lpips": 0.4}, 32)
    # VGG16's convolutions at 32 pixels; the weights are frozen, so the backward pass has the input's gradients only,
    # and the true image has none.
    forward, side, previous = 0, 32, 3
    for channels, depth in STAGES:
        for width in (previous, *[channels] * (depth - 1)):
            forward += 2 * side * side * 9 * width * channels
        previous, side = channels, side // 2
    resampling = 6 * (2 * 32 * 32 * 32 * 3)  # two products an image, and their gradients for one of the two
    total = perceptual_flops(distances, 3)
    assert total == 3 * forward + resampling
    shares = RowShares(guidance=0.0, tangent=0.0, perceptual=0.25)
    network = create_network("pmf_tiny_2", image_size=8, num_classes=10)
    assert step_flops(network, shares, total).perceptual == 0.25 * total


def test_the_line_names_only_parts_that_there_are():
    assert str(StepFlops(guidance=1e9, value=2e9, tangent=0.5e9, backward=4e9)) == (
        "7.5 GFLOP an image (guidance 1, value 2, tangent 0.5, backward 4)"
    )
