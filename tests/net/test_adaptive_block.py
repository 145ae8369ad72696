"""An adaLN-Zero block whose condition has a tangent: derivative, gradients, checkpointing, half precision."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import pmf.net.adaptive_layers
from pmf.net.adaptive_layers import AdaptiveBlock
from pmf.net.dual import Dual

ROWS, TOKENS, WIDTH = 4, 5, 12


def random_block() -> AdaptiveBlock:
    """All weights random, those of the modulation too, which starts at zero."""
    block, generator = AdaptiveBlock(WIDTH, 2, 4 * WIDTH), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return block


def inputs(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, condition, and tangents of their last rows."""
    generator = torch.Generator().manual_seed(2)
    shapes = ((ROWS, TOKENS, WIDTH), (ROWS, WIDTH), (rows, TOKENS, WIDTH), (rows, WIDTH))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


@pytest.mark.parametrize("rows", [1, 3, ROWS])
def test_the_dual_pass_is_the_derivative(rows):
    block = random_block().double()
    x, condition, dx, dc = inputs(rows)
    found = block(Dual(x, dx), Dual(condition, dc))
    _, expected = torch.func.jvp(block, (x[-rows:], condition[-rows:]), (dx, dc))
    _, at_rest = torch.func.jvp(lambda x: block(x, condition[-rows:]), (x[-rows:],), (dx,))
    # float64, two ways of the same chain rule through some tens of operations
    torch.testing.assert_close(found.tangent, expected.detach(), rtol=1e-10, atol=1e-10)
    assert float((at_rest - expected).detach().abs().max()) > 1e-2, "the condition's tangent matters"
    torch.testing.assert_close(block(Dual(x, dx), condition).tangent, at_rest.detach(), rtol=1e-10, atol=1e-10)
    assert not found.tangent.requires_grad
    assert torch.equal(found.value, block(x, condition))


@pytest.mark.parametrize("moving", ["neither", "x", "both"])
def test_a_checkpointed_block_has_the_same_values_and_gradients_as_a_plain_one(moving):
    """Gradients reach the condition too, and with it what made it."""
    found = []
    for checkpointed in (False, True):
        block = random_block().double()
        block.checkpointed = checkpointed
        x, condition, dx, dc = inputs(2)
        leaves = (x.requires_grad_(), condition.requires_grad_(), *block.parameters())
        output = block(
            x if moving == "neither" else Dual(x, dx), Dual(condition, dc) if moving == "both" else condition
        )
        value = output if moving == "neither" else output.value
        assert (type(value.grad_fn).__name__ == "_RecomputeBackward") == checkpointed
        tangent = torch.zeros(1) if moving == "neither" else output.tangent
        found.append((value, tangent, *torch.autograd.grad(value.square().sum(), leaves)))
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))  # the same operations
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0][2:])


@pytest.mark.parametrize("exponent", [-60, 20, 60])
def test_a_tangent_far_outside_float16_is_linear_to_the_bit_in_powers_of_two(exponent):
    block = random_block()
    x, condition, dx, dc = inputs(2, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        plain = block(Dual(x, dx), Dual(condition, dc)).tangent
        found = block(Dual(x, dx * 2.0**exponent), Dual(condition, dc * 2.0**exponent)).tangent
    assert torch.equal(found, plain * 2.0**exponent)
    with torch.no_grad():
        exact = block(Dual(x, dx), Dual(condition, dc)).tangent
    # Products of float16 with 11 bits, through some tens of them.
    assert float((plain - exact).norm() / exact.norm()) < 1e-2


def test_without_scaled_tangents_the_block_overflows(monkeypatch):
    monkeypatch.setattr(pmf.net.adaptive_layers, "scaled", lambda function, x: function(x))
    x, condition, dx, dc = inputs(2, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        found = random_block()(Dual(x, dx * 2.0**20), Dual(condition, dc * 2.0**20))
    assert not torch.isfinite(found.tangent).all()


@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_a_compiled_block_has_the_same_derivative_and_gradients(monkeypatch):
    torch._dynamo.reset()
    # Traces and differentiates as the default does, and spares the machine code.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    found = []
    for compiled in (False, True):
        block = random_block().double()
        if compiled:
            block.compile_body(static_shapes=True)
        x, condition, dx, dc = inputs(3)
        leaves = (condition.requires_grad_(), *block.parameters())
        output = block(Dual(x, dx), Dual(condition, dc))
        found.append((output.value, output.tangent, *torch.autograd.grad(output.value.square().sum(), leaves)))
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)  # float64, other orders of summation
