"""The rules, driven, against their restatement in tests/optim/reference.py, and the behaviour around them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pmf.distributed import owners as sharding
from pmf.errors import UserError
from pmf.optim.muon import orthogonalize
from pmf.optim.optimizer import RuleOptimizer
from tests.optim.reference import Reference, newton_schulz, normal

SHAPES = {"wide": (5, 19), "tall": (23, 7), "square": (11, 11), "row": (1, 8), "column": (8, 1)}
# float64 against float64 in another order of summation; updates are of order lr.
FLOAT64 = 1e-12


def gradient_of(character: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if character == "zero":
        return torch.zeros(shape, dtype=torch.float64)
    if character == "rank one":
        return normal(shape[0], 1, seed=seed) @ normal(1, shape[1], seed=seed + 1)
    return normal(*shape, seed=seed)


class TwoKinds(nn.Module):
    """Matrices of equal and different shapes, and vectors."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        shapes = [(6, 4), (4, 6), (6, 4), (6, 4), (5, 5)]
        draws = [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
        self.matrices = nn.ParameterList(nn.Parameter(draw) for draw in draws)
        self.vectors = nn.ParameterList(nn.Parameter(normal(n, seed=n, dtype=dtype)) for n in (3, 7))

    def optimizer(self, **settings) -> RuleOptimizer:
        groups = [{"kind": "muon", "params": self.matrices}, {"kind": "nadamw", "params": self.vectors}]
        return RuleOptimizer(groups, **settings)

    def set_gradients(self, step: int) -> None:
        for i, parameter in enumerate(self.parameters()):
            parameter.grad = normal(*parameter.shape, seed=1000 * step + i, dtype=parameter.dtype)


def run(network: TwoKinds, optimizer: RuleOptimizer, steps: range) -> None:
    for step in steps:
        network.set_gradients(step)
        optimizer.step()


@pytest.mark.parametrize("character", ["random", "rank one", "zero"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_orthogonalize_moves_singular_values_only(shape, character):
    matrix = gradient_of(character, shape, seed=3)
    result = orthogonalize(matrix)
    assert np.abs(result.numpy() - newton_schulz(matrix.numpy())).max() < FLOAT64
    assert orthogonalize(matrix.float(), dtype=torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_orthogonalize_batched_is_orthogonalize_one_by_one(shape):
    matrices = normal(2, 3, *shape)
    singly = torch.stack([torch.stack([orthogonalize(matrix) for matrix in row]) for row in matrices])
    torch.testing.assert_close(orthogonalize(matrices), singly, rtol=0, atol=FLOAT64)


def test_orthogonalize_is_scale_free_and_its_epsilon_is_outside_the_norm():
    matrix = normal(6, 9)
    torch.testing.assert_close(orthogonalize(1e6 * matrix), orthogonalize(matrix), rtol=0, atol=1e-6)
    tiny = matrix / torch.linalg.matrix_norm(matrix) * 1e-8  # the norm equals the epsilon: singular values are halved
    assert np.abs(orthogonalize(tiny).numpy() - newton_schulz(tiny.numpy())).max() < FLOAT64


@pytest.mark.parametrize("character", ["random", "rank one", "zero", "first zero"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("kind", ["muon", "nadamw", "adamw"])
def test_updates_equal_the_restatement(kind, shape, character):
    settings = {"momentum": 0.9, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.1}
    parameter = nn.Parameter(normal(*shape))
    optimizer = RuleOptimizer([{"kind": kind, "params": [parameter]}], **settings)
    reference = Reference(parameter.detach().numpy().copy(), kind, **settings)
    for step, lr in enumerate((1e-2, 0.0, 3e-2, 1e-3)):
        now = ("zero" if step == 0 else "random") if character == "first zero" else character
        gradient = gradient_of(now, shape, seed=10 * step)
        parameter.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        assert np.abs(parameter.detach().numpy() - reference.step(gradient.numpy(), lr)).max() < FLOAT64
    assert torch.equal(parameter.grad, gradient), "the gradient was changed"


@pytest.mark.parametrize("limit", [1, 60, 10**6], ids=["one by one", "pairs", "all together"])
def test_stack_size_does_not_change_updates(limit, monkeypatch):
    reference, network = TwoKinds(torch.float64), TwoKinds(torch.float64)
    run(reference, reference.optimizer(), range(3))
    monkeypatch.setitem(sharding.STACK_ELEMENTS, "cpu", limit)
    run(network, network.optimizer(), range(3))
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOAT64)


def test_learning_rate_zero_moves_moments_only():
    network = TwoKinds()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = network.optimizer(lr=0.0, weight_decay=0.1)
    run(network, optimizer, range(1))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(tensor.any() for tensor in optimizer.named_state(network).values())


def test_a_missing_gradient_is_skipped():
    network = TwoKinds()
    optimizer = network.optimizer()
    run(network, optimizer, range(1))
    network.set_gradients(1)
    idle = [network.matrices[0], network.vectors[1]]
    for parameter in idle:
        parameter.grad = None
    before = [parameter.detach().clone() for parameter in idle]
    moments = [{name: moment.clone() for name, moment in optimizer.state[parameter].items()} for parameter in idle]
    moving = network.matrices[2].detach().clone()
    optimizer.step()
    for parameter, weights, state in zip(idle, before, moments, strict=True):
        assert torch.equal(parameter, weights)
        assert all(torch.equal(optimizer.state[parameter][name], moment) for name, moment in state.items())
    assert not torch.equal(network.matrices[2], moving)
    assert [group["step"] for group in optimizer.param_groups] == [2, 2]


def test_closure_is_run_with_gradients():
    network = TwoKinds()
    optimizer = network.optimizer()

    def closure() -> float:
        loss = sum(parameter.square().sum() for parameter in network.parameters())
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) > 0


@pytest.mark.parametrize("way", ["state_dict", "named_state"])
def test_three_steps_saved_and_three_more_are_six(way):
    straight, resumed = TwoKinds(), TwoKinds()
    whole, first = straight.optimizer(), resumed.optimizer()
    run(straight, whole, range(6))
    run(resumed, first, range(3))
    second = resumed.optimizer()
    if way == "state_dict":
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    else:
        second.load_named_state(resumed, {name: t.clone() for name, t in first.named_state(resumed).items()})
    run(resumed, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    for name, tensor in whole.named_state(straight).items():
        assert torch.equal(tensor, second.named_state(resumed)[name]), name


def test_named_state_is_flat_and_complete():
    network = TwoKinds()
    optimizer = network.optimizer()
    run(network, optimizer, range(2))
    state = optimizer.named_state(network)
    names = [name for name, _ in network.named_parameters()]
    matrices = [name for name in names if name.startswith("matrices")]
    vectors = [name for name in names if name.startswith("vectors")]
    expected = {f"momentum/{name}" for name in matrices} | {"step/muon", "step/nadamw"}
    expected |= {f"{moment}/{name}" for moment in ("exp_avg", "exp_avg_sq") for name in vectors}
    assert set(state) == expected
    assert state["step/muon"].dtype == torch.int64 and state["step/muon"].item() == 2


def test_loading_another_state_names_the_first_differences():
    network = TwoKinds()
    optimizer = network.optimizer()
    run(network, optimizer, range(1))
    before = {name: tensor.clone() for name, tensor in optimizer.named_state(network).items()}
    other = {name: tensor.clone() for name, tensor in before.items()}
    del other["momentum/matrices.1"]
    other["momentum/matrices.0"] = torch.zeros(4, 4)
    other["exp_avg/surplus"] = torch.zeros(2)
    with pytest.raises(UserError) as caught:
        optimizer.load_named_state(network, other)
    assert str(caught.value) == (
        "the optimizer's state is of another run: momentum/matrices.1 is missing; "
        "momentum/matrices.0 is (4, 4) there and (6, 4) here; exp_avg/surplus is unknown here; "
        "check optimizer.name, model.name, data.image_size and data.num_classes"
    )
    after = optimizer.named_state(network)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()), "a refused load changed something"
    with pytest.raises(UserError, match=r"and \d+ more; check"):
        optimizer.load_named_state(network, {})


def test_unsuitable_groups_are_refused():
    matrix, vector = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="kind is 'adam'; choose one of: muon, nadamw, adamw"):
        RuleOptimizer([{"kind": "adam", "params": [vector]}])
    with pytest.raises(ValueError, match="kind 'adamw' already"):
        RuleOptimizer([{"kind": "adamw", "params": [vector]}, {"kind": "adamw", "params": [matrix]}])
    with pytest.raises(ValueError, match=r"matrices only, not a tensor of shape \(2,\)"):
        RuleOptimizer([{"kind": "muon", "params": [vector]}])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        RuleOptimizer([{"kind": "nadamw", "params": [vector]}], betas=(0.9, 1.0))


@pytest.mark.gpu
def test_cuda_stacks_equal_the_restatement():
    network = TwoKinds(torch.float64).cuda()
    optimizer = network.optimizer()
    references = [Reference(p.detach().cpu().numpy(), "muon") for p in network.matrices]
    references += [Reference(p.detach().cpu().numpy(), "nadamw") for p in network.vectors]
    for step in range(3):
        for i, (parameter, reference) in enumerate(zip(network.parameters(), references, strict=True)):
            gradient = normal(*parameter.shape, seed=100 * step + i)
            parameter.grad = gradient.cuda()
            reference.step(gradient.numpy(), 1e-3)
        optimizer.step()
    for parameter, reference in zip(network.parameters(), references, strict=True):
        assert np.abs(parameter.detach().cpu().numpy() - reference.weights).max() < FLOAT64
