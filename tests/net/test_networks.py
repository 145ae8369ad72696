"""What the networks compute, for whom, and that their dual pass is their derivative."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pmf.net.attention import attention
from pmf.net.base import BaseNetwork
from pmf.net.diffusion_transformer import DiffusionTransformer
from pmf.net.dual import Dual
from pmf.net.imf_transformer import ImfTransformer
from pmf.net.interface import Conditions, Tangent
from pmf.net.layers import SwiGLU
from pmf.net.pixel_transformer import PixelTransformer
from tests.net.small_networks import ALL, TOKENS, arguments, in_float32, small_network


def tangent_of(rows: int) -> Tangent:
    """All rates of all rows differ."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)
    t, h = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    return Tangent(z=z, t=t + 0.5, h=h + 1)


def forward_mode(network: BaseNetwork, z: Tensor, conditions: Conditions, tangent: Tangent) -> Tensor:
    """du along the tangent, of the same rows, by torch."""

    def u(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        return network(z, dataclasses.replace(conditions, t=t, h=h), heads="u").u

    primals, rates = (z, conditions.t, conditions.h), (tangent.z, tangent.t, tangent.h)
    return torch.func.jvp(u, primals, rates)[1].detach()


@pytest.mark.parametrize("architecture", TOKENS)
def test_only_the_heads_that_are_asked_for_are_computed(architecture):
    net, inputs = small_network(architecture), arguments()
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


@pytest.mark.parametrize("architecture", TOKENS)
def test_an_inference_network_has_no_v_head_and_the_same_u(architecture):
    net, inputs = small_network(architecture), arguments()
    light = small_network(architecture, inference=True)
    light.load_state_dict({name: net.state_dict()[name] for name in light.state_dict()})
    assert torch.equal(light(*inputs, heads="u").u, net(*inputs, heads="u").u)
    assert not [name for name in light.state_dict() if name.startswith("v_")]
    with pytest.raises(ValueError, match="no v head"):
        light(*inputs)


def test_the_diffusion_transformer_has_one_head_and_no_other_for_training():
    net, inputs = small_network(DiffusionTransformer), arguments()
    light = small_network(DiffusionTransformer, inference=True)
    assert light.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(light(*inputs).u, net(*inputs, heads="u").u)
    for heads in ("v", "uv"):
        with pytest.raises(ValueError, match="no v head"):
            net(*inputs, heads=heads)


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_the_dual_pass_is_the_derivative_of_the_last_rows(architecture, rows):
    net, (z, conditions) = small_network(architecture), arguments()
    tangent = tangent_of(rows)
    outputs = net(z, conditions, heads=net.heads, tangent=tangent)
    last = z[-rows:], conditions.last(rows)
    expected = forward_mode(net, *last, tangent)
    # float64, two ways of the same chain rule
    torch.testing.assert_close(outputs.u_tangent, expected, rtol=1e-10, atol=1e-10)
    assert not outputs.u_tangent.requires_grad

    epsilon = 1e-6
    moved = {name: getattr(last[1], name) + epsilon * getattr(tangent, name) for name in ("t", "h")}
    further = net(last[0] + epsilon * tangent.z, dataclasses.replace(last[1], **moved), heads="u").u
    difference = (further - net(*last, heads="u").u) / epsilon
    # a one-sided difference is wrong by epsilon times the second derivative
    torch.testing.assert_close(outputs.u_tangent, difference.detach(), rtol=1e-3, atol=1e-3)

    plain = net(z, conditions, heads=net.heads)
    assert torch.equal(outputs.u, plain.u)
    assert "v" not in net.heads or torch.equal(outputs.v, plain.v)


@pytest.mark.parametrize("architecture", ALL)
def test_each_rate_reaches_the_derivative(architecture):
    """A tangent that one of the rates does not enter is another one: the comparison above would tell."""
    net, (z, conditions) = small_network(architecture), arguments()
    tangent = tangent_of(4)
    whole = forward_mode(net, z, conditions, tangent)
    used = ("z", "t", "h") if architecture is DiffusionTransformer else ("z", "h")
    for name in ("z", "t", "h"):
        without = dataclasses.replace(tangent, **{name: torch.zeros_like(getattr(tangent, name))})
        found = net(z, conditions, heads="u", tangent=without).u_tangent
        distance = float((found - whole).norm() / whole.norm())
        assert distance > 1e-2 if name in used else distance < 1e-10, name


@pytest.mark.parametrize("architecture", ALL)
def test_the_dual_pass_gives_the_gradients_of_the_plain_one(architecture):
    net, (z, conditions) = small_network(architecture), arguments()
    used = [parameter for name, parameter in net.named_parameters() if not net.is_training_only(name)]
    ours, plain = (
        torch.autograd.grad(net(z, conditions, heads="u", tangent=tangent).u.square().sum(), used)
        for tangent in (tangent_of(2), None)
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # the same operations
        assert float(a.abs().max()) > 0


@pytest.mark.parametrize("architecture", ALL)
def test_conditions_that_are_used_change_u_and_no_others(architecture):
    net, (z, conditions) = small_network(architecture), arguments()
    plain = net(z, conditions, heads="u").u
    tokens = {"h", "omega", "t_min", "t_max", "labels"}
    used = {"t", "h", "labels"} if architecture is DiffusionTransformer else tokens
    for name, numbers in vars(conditions).items():
        other = (numbers + 1) % 5 if name == "labels" else numbers + 0.3
        moved = net(z, dataclasses.replace(conditions, **{name: other}), heads="u").u
        assert torch.equal(moved, plain) == (name not in used), name


@pytest.mark.parametrize("architecture", ALL)
def test_checkpointed_blocks_have_the_same_derivative_and_gradients(architecture):
    (z, conditions), found = arguments(), []
    for checkpointed in (False, True):
        net = small_network(architecture)
        assert len(net.find_blocks()) == (3 if architecture is DiffusionTransformer else 4)
        if checkpointed:
            net.checkpoint_blocks()
        outputs = net(z, conditions, heads="u", tangent=tangent_of(3))
        used = [parameter for name, parameter in net.named_parameters() if not net.is_training_only(name)]
        found.append((outputs.u, outputs.u_tangent, *torch.autograd.grad(outputs.u.square().sum(), used)))
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))  # the same operations


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("exponent", [-60, 20, 60])
def test_a_tangent_far_outside_float16_is_linear_to_the_bit_in_powers_of_two(architecture, exponent):
    """Nothing overflows, and nothing of a small tangent is lost."""
    # With more noise the diffusion transformer's derivative moves by 40 % if weights are rounded to bfloat16.
    net, (z, conditions) = small_network(architecture, noise=0.1).float(), arguments()
    z, conditions = z.float(), in_float32(conditions)
    # The embeddings of t and h know no scale: training's rates of them are 0 and 1.
    still, rate = torch.zeros(2), in_float32(tangent_of(2)).z

    def derivative(power: int) -> Tensor:
        return net(z, conditions, heads="u", tangent=Tangent(z=rate * 2.0**power, t=still, h=still)).u_tangent

    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        plain, found = derivative(0), derivative(exponent)
    assert torch.equal(found, plain * 2.0**exponent)
    with torch.no_grad():
        exact = derivative(0)
    # Products of float16 with 11 bits, through some tens of them: 7e-4 measured at worst.
    assert float((plain - exact).norm() / exact.norm()) < 5e-3


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


def test_condition_tokens_are_not_rotated_in_pixels_and_are_in_latents():
    pixel, imf = (small_network(architecture).rotation for architecture in (PixelTransformer, ImfTransformer))
    assert bool((pixel.cos[:20] == 1).all()) and bool((pixel.sin[:20] == 0).all())
    positions = torch.arange(20 + 16, dtype=torch.float64)
    # The fastest pair turns by one radian a token; the table is float32, the 35th entry right to 35 * 2^-24.
    torch.testing.assert_close(imf.cos[:, 0], positions.cos(), rtol=0, atol=2e-6)
    torch.testing.assert_close(imf.sin[:, 0], positions.sin(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("architecture", ALL)
def test_positions_matter(architecture):
    net, (z, conditions) = small_network(architecture), arguments()
    plain = net(z, conditions, heads="u").u
    for dim in (-1, -2):
        shifted = net(z.roll(2, dims=dim), conditions, heads="u").u.roll(-2, dims=dim)
        assert float((plain - shifted).detach().abs().max()) > 1e-2
