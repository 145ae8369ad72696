"""Each derivative rule is that of torch.func.jvp, for the rows that have a tangent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pmf.net.dual import Dual, Operand, add, gelu, gelu_tanh, modulate, multiply, silu
from pmf.net.norms import LayerNorm, RMSNorm

ROWS, TOKENS, WIDTH = 4, 3, 6
# float64, two ways of the same chain rule: sums of a few terms of size 1.
EXACT = 1e-12

Function = Callable[..., Operand]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_weights(norm: torch.nn.Module) -> torch.nn.Module:
    norm = norm.double()
    for seed, parameter in enumerate(norm.parameters()):
        torch.nn.init.zeros_(parameter).data += random(*parameter.shape, seed=seed)
    return norm


def largest_error(function: Function, inputs: list[Tensor], rows: int, moving: list[bool], rule: Function) -> float:
    """Of the tangent by ``rule`` to that of ``function`` by torch.func.jvp, where some inputs have a tangent."""
    tangents = [random(rows, *part.shape[1:], seed=10 + place) for place, part in enumerate(inputs)]
    duals = [Dual(x, dx) if moves else x for x, dx, moves in zip(inputs, tangents, moving, strict=True)]
    last = [x[ROWS - rows :] for x in inputs]

    def of_the_moving(*moved: Tensor) -> Tensor:
        given = iter(moved)
        return function(*(next(given) if moves else x for x, moves in zip(last, moving, strict=True)))

    primals = tuple(x for x, moves in zip(last, moving, strict=True) if moves)
    directions = tuple(dx for dx, moves in zip(tangents, moving, strict=True) if moves)
    expected = torch.func.jvp(of_the_moving, primals, directions)[1]
    found = rule(*duals)
    assert torch.equal(found.value, function(*inputs)), "the value is that of the tensors"
    assert found.tangent.shape == expected.shape
    assert not found.tangent.requires_grad
    return float((found.tangent - expected.detach()).abs().max())


TOKEN_SHAPE, CONDITION_SHAPE = (ROWS, TOKENS, WIDTH), (ROWS, WIDTH)
RULES: dict[str, tuple[Function, list[tuple[int, ...]]]] = {
    "add": (add, [TOKEN_SHAPE, TOKEN_SHAPE]),
    "add, broadcast": (add, [TOKEN_SHAPE, (ROWS, 1, WIDTH)]),
    "multiply": (multiply, [TOKEN_SHAPE, TOKEN_SHAPE]),
    "multiply, broadcast": (multiply, [TOKEN_SHAPE, (ROWS, 1, WIDTH)]),
    "modulate": (modulate, [TOKEN_SHAPE, CONDITION_SHAPE, CONDITION_SHAPE]),
    "silu": (silu, [TOKEN_SHAPE]),
    "gelu": (gelu, [TOKEN_SHAPE]),
    "gelu_tanh": (gelu_tanh, [TOKEN_SHAPE]),
    "LayerNorm": (LayerNorm(WIDTH, affine=False), [TOKEN_SHAPE]),
    "LayerNorm with weights": (with_weights(LayerNorm(WIDTH, affine=True)), [TOKEN_SHAPE]),
    "RMSNorm": (with_weights(RMSNorm(WIDTH)), [TOKEN_SHAPE]),
}
WHICH_MOVE = {1: [[True]], 2: [[True, True], [True, False], [False, True]]}
WHICH_MOVE[3] = [[True, True, True], [False, True, True], [True, False, False], [False, False, True]]
CASES = [(name, moving) for name, (_, shapes) in RULES.items() for moving in WHICH_MOVE[len(shapes)]]


@pytest.mark.parametrize("rows", [1, 3, ROWS])
@pytest.mark.parametrize(("name", "moving"), CASES)
def test_the_tangent_is_the_derivative(name, moving, rows):
    function, shapes = RULES[name]
    inputs = [random(*shape, seed=place) for place, shape in enumerate(shapes)]
    assert largest_error(function, inputs, rows, moving, rule=function) < EXACT


def of_the_first_rows(function: Function) -> Function:
    """The value's last rows have a tangent; this takes the first ones."""

    def rule(*duals: Operand) -> Dual:
        rows = duals[0].tangent.shape[0]
        turned = [Dual(x.value.roll(rows, 0), x.tangent) for x in duals]
        return Dual(function(*(x.value for x in duals)), function(*turned).tangent)

    return rule


def without_the_conditions_tangent(x: Dual, shift: Dual, scale: Dual) -> Dual:
    return modulate(x, shift, scale.value)


def without_the_mean(x: Dual) -> Dual:
    norm = LayerNorm(WIDTH, affine=False)
    deviation = x.value - x.value.mean(-1, keepdim=True)
    inverse = torch.rsqrt(deviation.square().mean(-1, keepdim=True) + norm.eps)
    return Dual(norm(x.value), x.tangent * inverse[ROWS - x.tangent.shape[0] :])


WRONG = {
    **{f"{name}, of other rows": (name, of_the_first_rows(RULES[name][0])) for name in RULES if "add" not in name},
    "modulate, scale at rest": ("modulate", without_the_conditions_tangent),
    "LayerNorm, moments at rest": ("LayerNorm", without_the_mean),
    "gelu, the other form": ("gelu", lambda x: Dual(gelu(x.value), gelu_tanh(x).tangent)),
    "gelu_tanh, the other form": ("gelu_tanh", lambda x: Dual(gelu_tanh(x.value), gelu(x).tangent)),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_rule_is_found(fault):
    name, rule = WRONG[fault]
    function, shapes = RULES[name]
    inputs = [random(*shape, seed=place) for place, shape in enumerate(shapes)]
    # The two forms of GELU differ least: by up to 1e-3 in their slopes.
    assert largest_error(function, inputs, 3, [True] * len(shapes), rule) > 1e-5


@pytest.mark.parametrize("function", [gelu, gelu_tanh])
def test_the_slope_of_gelu_is_finite_in_half_precision(function):
    """The square of 256 is beyond float16."""
    x = torch.tensor([[-60000.0, -300.0, 0.0, 300.0, 60000.0]], dtype=torch.float16)
    found = function(Dual(x, torch.ones_like(x)))
    assert found.tangent.dtype == torch.float16
    assert found.tangent.tolist() == [[0, 0, 0.5, 1, 1]]


def test_layer_norm_is_its_formula():
    x = 3 + random(*TOKEN_SHAPE, seed=0)
    centred = x - x.mean(-1, keepdim=True)
    plain = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    norm = with_weights(LayerNorm(WIDTH, affine=True))
    torch.testing.assert_close(LayerNorm(WIDTH, affine=False)(x), plain, rtol=1e-12, atol=1e-12)  # other sums
    torch.testing.assert_close(norm(x), plain * norm.weight + norm.bias, rtol=1e-12, atol=1e-12)
    assert norm.float()(x.half()).dtype == torch.float32
