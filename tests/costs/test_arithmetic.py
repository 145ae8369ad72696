"""The counted arithmetic of a step: against a count by hand, against torch's counter, and against the draws."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pmf.costs.arithmetic import NUM_ROWS, StepFlops, decoding_summary, step_flops
from pmf.costs.without_contents import without_contents
from pmf.data.codec import create_codec
from pmf.data.options import DataConfig
from pmf.flow.objective import LossTerms, Objective, create_objective
from pmf.flow.options import PixelMeanFlowOptions
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import create_network
from pmf.perceptual.distances import PerceptualDistances
from pmf.perceptual.lpips import STAGES
from pmf.training.trainer import Trainer
from tests.costs.by_hand import mean_flow_by_hand, step_by_hand
from tests.flow.methods import METHODS
from tests.latents import latent_config, write_published_config
from tests.perceptual.published import random_lpips
from tests.runs import tiny_config


def small_network(**changes: int) -> PixelTransformer:
    shape = {"image_size": 16, "patch_size": 4, "channels": 3, "num_classes": 5, "width": 48, "depth": 5}
    return PixelTransformer(**{**shape, "head_depth": 2, "num_heads": 4, **changes})


def parts(flops: StepFlops, rows: int = 1) -> list[float]:
    return [flops.without_gradients * rows, flops.forward * rows, flops.backward * rows]


@pytest.mark.parametrize("rows", [8, 1000])
@pytest.mark.parametrize("data_proportion", [0.25, 0.5, 1.0])
def test_the_count_is_that_by_hand_to_the_last_operation(data_proportion, rows):
    objective = create_objective(PixelMeanFlowOptions(data_proportion=data_proportion), num_classes=5)
    network = small_network(mlp_width=130)  # which the layer fills up with zeros to 136
    found = step_flops(network, objective, (3, 16, 16), rows=rows)
    draws = objective.draw(torch.zeros(rows, 1, 1, 1), torch.Generator().manual_seed(0))
    assert parts(found, rows) == pytest.approx(parts(step_by_hand(network, draws)), rel=1e-12)  # divided by rows


@pytest.mark.parametrize("data_proportion", [0.25, 0.75])
def test_the_count_of_mean_flow_is_that_by_hand_to_the_last_operation(data_proportion):
    chosen, rows = METHODS["meanflow"], 1000
    objective, network = chosen.objective(chosen.options(data_proportion=data_proportion)), chosen.network().float()
    found = step_flops(network, objective, (3, 8, 8), rows=rows)
    draws = objective.draw(torch.zeros(rows, 1, 1, 1), torch.Generator().manual_seed(0))
    assert parts(found, rows) == pytest.approx(parts(mean_flow_by_hand(network, draws)), rel=1e-12)  # divided by rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("derivative", ["dual", "jvp"])
def test_the_count_is_that_of_torchs_counter_on_a_real_step(derivative, method):
    rows, chosen = 8, METHODS[method]
    objective, network = chosen.objective(chosen.options(derivative=derivative)), chosen.network().float()
    draws = objective.draw(torch.zeros(rows, 3, 8, 8), torch.Generator().manual_seed(0))
    images, labels = torch.zeros(rows, 3, 8, 8), torch.zeros(rows, dtype=torch.int64)
    # Attention written out: a fused backward pass computes the scores twice.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective.loss(network, images, labels, draws).total.backward()
    assert step_flops(network, objective, (3, 8, 8), rows=rows).total * rows == counter.get_total_flops()


@pytest.mark.parametrize("name", ["pmf_b_16", "pmf_b_32", "pmf_tiny_2"])
def test_recipe_sizes_need_what_they_need_by_hand(name):
    objective = create_objective(PixelMeanFlowOptions(), num_classes=1000, perceptual_max_t=0.8)
    with torch.device("meta"):
        network = create_network(name, image_size=64, num_classes=1000)
    found = step_flops(network, objective, (3, 64, 64))
    rows = 2**16
    draws = objective.draw(torch.zeros(rows, 1, 1, 1), torch.Generator().manual_seed(0))
    assert parts(found, rows) == pytest.approx(parts(step_by_hand(network, draws)), rel=1e-12)


def test_shares_of_rows_are_those_of_the_distributions():
    network = small_network()

    def without_gradients(**options: float) -> float:
        objective = create_objective(PixelMeanFlowOptions(**options), num_classes=5)
        return step_flops(network, objective, (3, 16, 16)).without_gradients

    guidance = without_gradients(data_proportion=1.0, label_drop=0.0)  # v_u of every row
    # Nothing asks for v_u, and the pass has two rows all the same.
    assert without_gradients(data_proportion=1.0, label_drop=1.0) == 2 * guidance / NUM_ROWS
    tangent = without_gradients(data_proportion=0.0, label_drop=1.0) - guidance  # v_c and du/dt of every row
    # FM rows need v_u unless their label is dropped: 0.5 - 0.1 = 0.4. Of the others, those with t in the interval.
    t = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    larger = torch.sigmoid(torch.special.ndtri(t) * 0.8 + 0.8).max(0).values
    inside = ((2 * larger - 1).clamp(0, 1) - 1).abs() * (2 * larger).clamp(0, 1)  # t_max in U[.5, 1], t_min in U[0, .5]
    expected = (0.5 + 0.4 + 0.5 * float(inside.mean())) * guidance + 0.5 * tangent
    assert without_gradients() == pytest.approx(expected, abs=0.01 * guidance)  # 5 standard errors of 65,536 rows


class TwoProducts(Objective[None, None]):
    """An objective that the library does not know: one product that is trained, and one that is not."""

    def draw(self, images, generator, scalars=None):
        return None

    def loss(self, network, images, labels, draws):
        flat = images.flatten(1)
        with torch.no_grad():
            network(flat[: len(flat) // 2])
        return LossTerms(total=network(flat).sum(), logs={}, parts={})


def test_a_new_network_and_objective_are_counted_as_they_are():
    found = step_flops(nn.Linear(12, 5, bias=False), TwoProducts(), (3, 2, 2))
    assert parts(found) == [60.0, 120.0, 120.0]  # the weight's gradient; the images need none


def test_what_is_on_the_devices_is_left_alone():
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step_flops(network, create_objective(PixelMeanFlowOptions(), num_classes=5), (3, 16, 16), rows=8)
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_copies_without_contents_keep_shapes_and_what_is_shared():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4))
    module[1].weight = module[0].weight
    module[1].bias.requires_grad_(False)
    copied, again = without_contents((module, module))
    assert copied is again
    assert copied[0].weight is copied[1].weight
    assert [parameter.requires_grad for parameter in copied.parameters()] == [True, True, False]
    assert {(type(p), p.device.type) for p in copied.parameters()} == {(nn.Parameter, "meta")}
    assert isinstance(without_contents(torch.zeros(2)), Tensor)


def test_paper_sizes_need_what_the_method_says():
    with torch.device("meta"):
        network = create_network("pmf_b_16", image_size=256, num_classes=1000)
    flops = step_flops(network, create_objective(PixelMeanFlowOptions(), num_classes=1000), (3, 256, 256))
    assert flops.total == pytest.approx(410e9, rel=0.02)
    assert str(flops).startswith("41")
    assert flops.backward == pytest.approx(2 * flops.forward, rel=0.01)


def test_perceptual_networks_count_twice_forward_and_once_backward():
    distances = PerceptualDistances({"lpips": random_lpips()}, {"lpips": 0.4}, 32)
    # VGG16's convolutions at 32 pixels; the weights are frozen, so the backward pass has the input's gradients only,
    forward, side, previous = 0, 32, 3
    for channels, depth in STAGES:
        for width in (previous, *[channels] * (depth - 1)):
            forward += 2 * side * side * 9 * width * channels
        previous, side = channels, side // 2
    resampling = 6 * (2 * 32 * 32 * 32 * 3)  # two products an image, and their gradients for one of the two
    for network in distances.networks.values():
        network.requires_grad_(False)
    without, seen = (
        create_objective(PixelMeanFlowOptions(), num_classes=5, perceptual=perceptual, perceptual_max_t=1.1)
        for perceptual in (None, distances)
    )
    network = small_network(image_size=32)
    more = step_flops(network, seen, (3, 32, 32)).total - step_flops(network, without, (3, 32, 32)).total
    assert more == pytest.approx(3 * forward + resampling, rel=1e-9)  # a difference of numbers that were divided


def test_a_trainer_has_the_count_of_its_own_network_and_options(tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", "training.activation_checkpointing=true"))
    AcceleratorState._reset_state(reset_partial_state=True)
    config = trainer.config
    plain = create_network(config.model.name, image_size=8, num_classes=10, channels=1)
    objective = create_objective(config.objective, num_classes=10)
    assert trainer.train_step.flops == step_flops(plain, objective, (1, 8, 8))


def test_the_line_names_only_parts_that_there_are():
    assert str(StepFlops(without_gradients=1.5e9, forward=2e9, backward=4e9)) == (
        "7.5 GFLOP an image (without gradients 1.5, forward 2, backward 4)"
    )
    without = StepFlops(without_gradients=0.0, forward=2e9, backward=4e9)
    assert str(without) == "6 GFLOP an image (forward 2, backward 4)"


def test_decoding_is_counted_as_torch_counts_it(autoencoder, encoded):
    codec = create_codec(latent_config(encoded(), autoencoder))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        codec.decode(torch.zeros(1, *codec.shape))
    assert decoding_summary(codec) == f"; decoding takes {counter.get_total_flops() / 1e9:.4g} GFLOP an image"
    assert decoding_summary(create_codec(DataConfig(kind="synthetic", image_size=8))) == ""


@pytest.mark.parametrize(("size", "multiply_adds"), [(256, 310e9), (512, 1230e9)])
def test_the_published_decoder_takes_what_is_published(size, multiply_adds, tmp_path):
    """From its configuration alone. The papers count multiply-adds, two operations each, and round."""
    pytest.importorskip("diffusers", reason="needs diffusers: uv sync --extra latent")
    write_published_config(tmp_path)
    codec = create_codec(DataConfig(kind="latents", path="x", image_size=size, autoencoder=str(tmp_path)))
    found = float(decoding_summary(codec).split()[3])
    assert found * 1e9 == pytest.approx(2 * multiply_adds, rel=0.03)
