"""``objective.derivative: auto`` asks the network; one without tangents trains as well as any."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from benchmarks.reference_mean_flow import mean_flow_step
from benchmarks.reference_step import reference_step
from pmf.errors import UserError
from pmf.flow.mean_flow import MeanFlow
from pmf.flow.options import MeanFlowOptions, PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.net.interface import Conditions, HeadOutputs, Network
from pmf.net.pixel_transformer import PixelTransformer
from pmf.training.trainer import Trainer
from tests.flow.small_step import CLASSES, EXACT, gradients, inputs, shape_draws, small_network, worst_relative_error
from tests.runs import tensors_of, tiny_config


class Perceptron(nn.Module):
    """Pixels and conditions to both heads, in layers of torch that know nothing of tangents."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Linear(3 * 8 * 8 + 4, 32)
        self.classes = nn.Embedding(CLASSES + 1, 32)
        self.heads = nn.ModuleDict({name: nn.Linear(32, 3 * 8 * 8) for name in "uv"})
        generator = torch.Generator().manual_seed(4)
        for parameter in self.double().parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)

    def forward(self, z: Tensor, conditions: Conditions, heads: str = "uv") -> HeadOutputs:
        numbers = torch.stack((conditions.h, 1 / conditions.omega, conditions.t_min, conditions.t_max), 1)
        hidden = F.gelu(self.pixels(torch.cat((z.flatten(1), numbers), 1)) + self.classes(conditions.labels))
        found = {name: self.heads[name](hidden).view_as(z) for name in heads}
        return HeadOutputs(found.get("u"), found.get("v"))


class OneHead(nn.Module):
    """Of the same kind, with u alone; nobody may ask for v."""

    heads = "u"

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Linear(3 * 8 * 8 + 2, 32)
        self.classes = nn.Embedding(CLASSES + 1, 32)
        self.output = nn.Linear(32, 3 * 8 * 8)
        generator = torch.Generator().manual_seed(4)
        for parameter in self.double().parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)

    def forward(self, z: Tensor, conditions: Conditions, heads: str) -> HeadOutputs:
        assert heads == "u"
        told = torch.cat((z.flatten(1), conditions.t[:, None], conditions.h[:, None]), 1)
        return HeadOutputs(u=self.output(F.gelu(self.pixels(told) + self.classes(conditions.labels))).view_as(z))


class Plain(PixelTransformer):
    """Ours, written without tangents: they can be neither asked for nor given."""

    carries_tangents = False

    def forward(self, z, conditions, heads="uv"):
        outputs = super().forward(z, conditions, heads)
        return HeadOutputs(outputs.u, outputs.v)


def plain_twin(network: PixelTransformer) -> PixelTransformer:
    twin = copy.deepcopy(network)
    twin.__class__ = Plain
    return twin


def step_gradients(network: Network, parameters: nn.Module, derivative: str) -> dict[str, Tensor]:
    images, labels, standard = inputs()
    settings = PixelMeanFlowOptions(derivative=derivative)
    objective = PixelMeanFlow(settings, num_classes=CLASSES)
    return gradients(objective.loss(network, images, labels, shape_draws(standard, settings, 1.0)).total, parameters)


# float64 through other orders of summation, as in test_exact_step.
@pytest.mark.parametrize("derivative", ["auto", "jvp"])
def test_a_network_without_tangents_has_the_gradients_of_the_literal_step(derivative):
    network = Perceptron()
    images, labels, standard = inputs()
    literal = reference_step(network, PixelMeanFlowOptions(), CLASSES, images, labels, standard).loss
    expected = gradients(literal, network)
    assert min(float(gradient.norm()) for gradient in expected.values()) > 0
    assert worst_relative_error(step_gradients(network, network, derivative), expected) < EXACT


@pytest.mark.parametrize("derivative", ["auto", "jvp"])
def test_a_network_with_one_head_and_without_tangents_has_the_gradients_of_the_literal_step(derivative):
    network = OneHead()
    images, labels, standard = inputs()
    settings = MeanFlowOptions(derivative=derivative, guidance_scale=0.7, guidance_mixing=0.5)
    objective = MeanFlow(settings, num_classes=CLASSES)
    objective.require_network(network, compiled=False, parallel="ddp")
    literal = mean_flow_step(network, settings, CLASSES, images, labels, standard).loss
    expected = gradients(literal, network)
    assert min(float(gradient.norm()) for gradient in expected.values()) > 0
    ours = objective.loss(network, images, labels, objective.shape(standard)).total
    assert worst_relative_error(gradients(ours, network), expected) < EXACT


@pytest.mark.parametrize("derivative", ["auto", "jvp"])
@pytest.mark.parametrize("as_function", [False, True])
def test_the_same_network_without_tangents_has_the_same_gradients(as_function, derivative):
    network = small_network()
    twin = plain_twin(network)
    called = (lambda *args, **kwargs: twin(*args, **kwargs)) if as_function else twin
    expected = step_gradients(network, network, "dual")
    assert worst_relative_error(step_gradients(called, twin, derivative), expected) < EXACT
    assert worst_relative_error(step_gradients(network, network, "auto"), expected) == 0  # it asked, and was told so


@pytest.fixture
def without_tangents(monkeypatch):
    """Runs train the plain network."""
    from pmf.training import step

    create = step.network_of
    monkeypatch.setattr(step, "network_of", lambda *args, **kwargs: plain_twin(create(*args, **kwargs)))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("without_tangents")
def test_a_run_trains_it_with_auto_as_with_jvp(tmp_path):
    for derivative in ("auto", "jvp"):
        short = ("training.max_steps=3", f"objective.derivative={derivative}")
        Trainer(tiny_config(tmp_path / derivative, *short)).train()
        AcceleratorState._reset_state(reset_partial_state=True)
    auto, jvp = (tensors_of(tmp_path / name / "checkpoints" / "step_00000003") for name in ("auto", "jvp"))
    assert auto.keys() == jvp.keys()
    assert [name for name in auto if not torch.equal(auto[name], jvp[name])] == []


@pytest.mark.usefixtures("without_tangents")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.derivative=dual"], "objective.derivative is dual, but Plain carries no tangents; use jvp or auto"),
        (["training.compile=true"], "jvp cannot pass compiled blocks: set training.compile to false"),
        (["training.parallel=fsdp"], "jvp needs training.parallel: ddp, which is fsdp"),
        (["training.parallel=hsdp"], "jvp needs training.parallel: ddp, which is hsdp"),
    ],
)
def test_what_needs_tangents_is_refused_in_one_line(tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        Trainer(tiny_config(tmp_path / "run", *overrides))
    assert str(error.value).endswith(message)
    assert str(error.value).startswith("objective.derivative is ")
    assert "\n" not in str(error.value)
