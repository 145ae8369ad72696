"""Updates that are recorded and replayed, with other numbers each time. A stand-in for CUDA graphs records."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor

from pmf.optim.options import RULES
from pmf.optim.rates import Rates
from pmf.optim.rule import Moments, Rule, Settings
from pmf.training import captured
from tests.loss_trace import GOLDEN, SKIPPED, TRACES, record
from tests.optim.lion import Lion
from tests.optim.updated import BATCH, RATES, Updated
from tests.recorders import Replaying


@pytest.fixture
def lion(monkeypatch) -> None:
    monkeypatch.setitem(RULES, "lion", Lion)


@pytest.mark.parametrize("name", ["muon", "nadamw", "adamw", "lion"])
def test_recorded_updates_are_those_by_numbers_of_the_host(name, lion):
    """With a warm-up, a gradient that is clipped, decay, and an average that is cut to a twentieth of the run."""
    recorder = Replaying()
    found, expected = Updated(name, recorder).train().state(), Updated(name, None).train().state()
    assert recorder.replays == [len(RATES) - captured.WARM_UPS]
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        # float64, with one more rounding of a product; averages are float32, with two more.
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-12 if tensor.dtype == torch.float64 else 1e-6)


def test_in_float32_they_differ_by_rounding_alone():
    found = Updated("muon", Replaying(), dtype=torch.float32).train().state()
    expected = Updated("muon", None, dtype=torch.float32).train().state()
    for key, tensor in expected.items():
        # Weights of at most 4 over six updates, each rounded a few times to 2^-24 of them.
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=4 * 6 * 4 * 2**-24)


@pytest.mark.parametrize("name", ["muon", "adamw", "lion"])
def test_a_replay_does_what_was_launched_to_the_bit(name, lion, monkeypatch):
    found = Updated(name, Replaying(), dtype=torch.float32).train().state()
    monkeypatch.setattr(captured, "WARM_UPS", 10**9)
    expected = Updated(name, Replaying(), dtype=torch.float32).train().state()
    assert [key for key, tensor in expected.items() if not torch.equal(found[key], tensor)] == []


def test_what_is_loaded_is_what_a_replay_moves():
    """A checkpoint is read into the tensors that were recorded."""
    whole, recorder = Updated("muon", Replaying()).train(), Replaying()
    other = Updated("muon", recorder).train(range(4))
    saved = copy.deepcopy(Updated("muon", Replaying()).train(range(3)).state())
    names = [name for name, _ in other.network.named_parameters()]
    other.network.load_state_dict({name: saved[name] for name in names})
    for average in other.averages.names:
        other.averages.load(average, {name: saved[f"{average}/{name}"] for name in names})
    of_optimizer = other.optimizer.named_state(other.network)
    other.optimizer.load_named_state(other.network, {name: saved[name] for name in of_optimizer})
    other.images = 3 * BATCH
    found = other.train(range(3, len(RATES))).state()
    assert recorder.replays == [2 + 3]
    assert [key for key, tensor in whole.state().items() if not torch.equal(found[key], tensor)] == []


def test_it_is_recorded_again_where_other_parameters_have_gradients():
    recorder = Replaying()
    runs = [Updated("muon", recorder), Updated("muon", None)]
    for run in runs:
        run.network[0].requires_grad_(False)
        run.train(range(3))
        run.network[0].requires_grad_(True)
        run.train(range(3, 6))
    assert recorder.replays == [1, 1]
    for found, expected in zip(*(run.network.parameters() for run in runs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # as above


@pytest.mark.parametrize("name", ["muon", "nadamw"])
def test_more_parameters_take_no_more_operations(name):
    """But for views, of which a device knows nothing: a rate that is a tensor costs no kernel for each parameter."""
    counts = []
    for blocks in (1, 4):
        recorder = Replaying()
        Updated(name, recorder, blocks=blocks, dtype=torch.float32).train(range(3))
        views = {"detach", "view", "slice", "split_with_sizes", "unbind", "alias"}
        counts.append([operation for operation in recorder.operations[0] if operation not in views])
    assert counts[0] == counts[1]
    assert any(operation.startswith("_foreach") for operation in counts[0])


class Named(Lion):
    """Has another rate in every second update."""

    def rates(self, settings: Settings, lr: float, step: int) -> dict[str, float]:
        return {("even", "odd")[step % 2]: 1.0}


def test_rates_of_other_names_are_not_taken_for_those_that_were_recorded(monkeypatch):
    monkeypatch.setitem(RULES, "named", Named)
    monkeypatch.setitem(RULES, "lion", Lion)
    recorder = Replaying()
    found, expected = Updated("named", recorder).train(), Updated("lion", None).train()
    assert recorder.replays == []
    for ours, theirs in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)  # as above


class Plain(Rule):
    """Takes the rate for a number, which the host would have to wait for."""

    def update(
        self, settings: Settings, rates: Rates, weights: list[Tensor], gradients: list[Tensor], moments: Moments
    ) -> None:
        torch._foreach_add_(weights, gradients, alpha=-rates["lr"])


def test_a_rule_that_needs_numbers_is_refused_and_not_kept_at_one_rate(monkeypatch):
    monkeypatch.setitem(RULES, "plain", Plain)
    Updated("plain", None).train()
    with pytest.raises(RuntimeError, match="a value is asked for"):
        Updated("plain", Replaying()).train()


def test_the_losses_of_a_recorded_run_are_those_on_file(recorded, tmp_path):
    """The whole trainer in float64, with clipping, a step that is skipped, a warm-up and decay."""
    steps = SKIPPED + 2
    lines = [line for line in json.loads((GOLDEN / TRACES["pmf"].file).read_text())["metrics"] if "fid" not in line]
    changes = ("training.cuda_graph=step", "evaluation.every_images=0", f"training.max_steps={steps}")
    found = record("pmf", tmp_path / "run", *changes)["metrics"]
    assert recorded.updates[0].replays == [steps - 1 - captured.WARM_UPS]
    assert [line["step"] for line in found if "loss" not in line] == [SKIPPED]
    for ours, theirs in zip(found, lines[:steps], strict=True):
        # What rounding of the last bit becomes in a few steps; see tests/test_loss_trace.py.
        assert ours == pytest.approx(theirs, rel=1e-9, abs=0)
