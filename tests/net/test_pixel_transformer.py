"""What the network computes, for whom, and that its dual pass is its derivative."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pmf.net.attention import attention
from pmf.net.dual import Dual
from pmf.net.interface import Conditions, Tangent
from pmf.net.layers import SwiGLU
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import create_network


def network(**changes) -> PixelTransformer:
    settings = {
        "image_size": 8,
        "patch_size": 2,
        "channels": 3,
        "num_classes": 4,
        "width": 16,
        "depth": 3,
        "head_depth": 1,
        "num_heads": 2,
    }
    net = PixelTransformer(**{**settings, **changes}).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return net


def arguments(rows: int = 4) -> tuple[torch.Tensor, Conditions]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)
    h, omega, t_min, t_max = torch.rand(4, rows, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (rows,), generator=generator)
    return z, Conditions(t=h, h=h, omega=1 + omega, t_min=t_min, t_max=t_max, labels=labels)


def test_only_the_heads_that_are_asked_for_are_computed():
    net, inputs = network(), arguments()
    both = net(*inputs)
    ran = []
    for name in ("u_blocks", "v_blocks"):
        getattr(net, name)[0].register_forward_hook(lambda *_, name=name: ran.append(name))
    only_u, only_v = net(*inputs, heads="u"), net(*inputs, heads="v")
    assert ran == ["u_blocks", "v_blocks"]
    assert only_u.v is None
    assert only_v.u is None
    assert torch.equal(only_u.u, both.u)
    assert torch.equal(only_v.v, both.v)


def test_an_inference_network_has_no_v_head_and_the_same_u():
    net, inputs = network(), arguments()
    light = network(inference=True)
    light.load_state_dict({name: net.state_dict()[name] for name in light.state_dict()})
    assert torch.equal(light(*inputs, heads="u").u, net(*inputs, heads="u").u)
    assert not [name for name in light.state_dict() if name.startswith("v_")]
    with pytest.raises(ValueError, match="no v head"):
        light(*inputs)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_the_dual_pass_is_the_derivative_of_the_last_rows(rows):
    net, (z, conditions) = network(), arguments()
    z_tangent = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    one = torch.ones(rows, dtype=torch.float64)
    outputs = net(z, conditions, tangent=Tangent(z=z_tangent, t=one, h=one))
    last_z, last = z[-rows:], conditions.last(rows)

    def u(z, h):
        return net(z, dataclasses.replace(last, h=h), heads="u").u

    _, expected = torch.func.jvp(u, (last_z, last.h), (z_tangent, one))
    # float64, two ways of the same chain rule
    torch.testing.assert_close(outputs.u_tangent, expected.detach(), rtol=1e-11, atol=1e-11)
    epsilon = 1e-6
    difference = (u(last_z + epsilon * z_tangent, last.h + epsilon) - u(last_z, last.h)) / epsilon
    # a one-sided difference is wrong by epsilon times the second derivative
    torch.testing.assert_close(outputs.u_tangent, difference.detach(), rtol=1e-3, atol=1e-3)
    plain = net(z, conditions)
    assert torch.equal(outputs.u, plain.u)
    assert torch.equal(outputs.v, plain.v)


def test_the_dual_pass_gives_the_gradients_of_the_plain_one():
    net, (z, conditions) = network(), arguments()
    one = torch.ones(2, dtype=torch.float64)
    tangent = Tangent(z=torch.ones_like(z[:2]), t=one, h=one)
    ours = torch.autograd.grad(net(z, conditions, tangent=tangent).u.square().sum(), net.u_blocks.parameters())
    plain = torch.autograd.grad(net(z, conditions).u.square().sum(), net.u_blocks.parameters())
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # the same operations


def test_attention_is_the_same_written_out_and_fused():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 7, 4, generator=generator, dtype=torch.float64)
    fused = attention(query, key, value)
    written_out, _ = torch.func.jvp(lambda q: attention(q, key, value), (query,), (torch.ones_like(query),))
    torch.testing.assert_close(fused, written_out, rtol=1e-12, atol=1e-12)
    dual = attention(*(Dual(part, torch.zeros_like(part[:1])) for part in (query, key, value)))
    assert torch.equal(dual.value, fused)
    assert not dual.tangent.any()


@pytest.mark.parametrize("hidden", [40, 42], ids=["a multiple of 8", "padded"])
def test_the_swiglu_is_its_formula_whatever_its_width(hidden):
    layer = SwiGLU(16, hidden).double()
    x = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gate, up, down = (linear.weight for linear in (layer.gate, layer.up, layer.down))
    plain = (torch.nn.functional.silu(x @ gate.mT) * (x @ up.mT)) @ down.mT
    torch.testing.assert_close(layer(x), plain, rtol=1e-12, atol=1e-12)  # one more summand of 0 in another order
    assert layer.gate(x).shape[-1] % 8 == 0
    assert {tuple(p.shape) for p in layer.parameters()} == {(hidden, 16), (16, hidden)}, "the true shapes"
    ours, theirs = (torch.autograd.grad(y.square().sum(), layer.parameters()) for y in (layer(x), plain))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_condition_tokens_are_not_rotated_and_positions_matter():
    net, (z, conditions) = network(), arguments()
    plain = net(z, conditions, heads="u").u
    shifted = net(z.roll(2, dims=-1), conditions, heads="u").u.roll(-2, dims=-1)
    assert float((plain - shifted).detach().abs().max()) > 1e-2
    assert bool((net.rotation.cos[:20] == 1).all())
    assert bool((net.rotation.sin[:20] == 0).all())


def test_a_new_network_predicts_zero_and_is_a_function_of_its_generator():
    a, b, c = (
        create_network("pmf_tiny_2", image_size=8, num_classes=4, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    z, conditions = arguments()
    numbers = {key: part.float() for key, part in vars(conditions).items() if part.is_floating_point()}
    assert not a(z.float(), dataclasses.replace(conditions, **numbers)).u.any()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.class_tokens, c.class_tokens)
