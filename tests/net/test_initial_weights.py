"""How the weights of the networks start, where the golden statistics do not say it (tests/parity)."""

from __future__ import annotations

import pytest
import torch

from pmf.net.diffusion_transformer import DiffusionTransformer
from pmf.net.imf_transformer import ImfTransformer
from pmf.net.sizes import create_network
from tests.net.small_networks import arguments, in_float32


@pytest.mark.parametrize("name", ["pmf_tiny_2", "imf_tiny_2", "dit_tiny_2"])
def test_a_new_network_predicts_zero_and_is_a_function_of_its_generator(name):
    a, b, c = (
        create_network(name, image_size=8, num_classes=4, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    z, conditions = arguments()
    assert not a(z.float(), in_float32(conditions), heads="u").u.any()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    drawn = [not torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True)]
    assert drawn == [bool(parameter.any()) and not bool((parameter == 1).all()) for parameter in a.parameters()]


def test_the_diffusion_transformers_initial_weights_are_drawn_as_dits():
    network = DiffusionTransformer(
        image_size=32,
        patch_size=4,
        channels=4,
        num_classes=99,
        width=192,
        depth=2,
        num_heads=3,
        generator=torch.Generator().manual_seed(0),
    )
    xavier, embedded = 0, 0
    for name, parameter in network.named_parameters():
        weight = parameter.detach()
        if name.endswith("bias") or "modulation" in name or name.startswith("output"):
            assert not weight.any(), name
            continue
        fan_out, fan_in = weight.flatten(1).shape
        uniform = name.startswith(("blocks", "patch_embedding"))
        expected = (2 / (fan_in + fan_out)) ** 0.5 if uniform else 0.02
        # The deviation of n numbers is off by less than expected / sqrt(n) or so, their mean by as much; five of those.
        slack = 5 * expected / weight.numel() ** 0.5
        assert abs(float(weight.std(correction=0)) - expected) < slack, name
        assert abs(float(weight.mean())) < slack, name
        # A uniform distribution ends at sqrt(3) deviations, and a normal one of as many numbers goes beyond 3.
        largest = float(weight.abs().max()) / expected
        assert 1.7 < largest <= 3**0.5 + 1e-6 if uniform else largest > 3, name
        xavier, embedded = xavier + uniform, embedded + (not uniform)
    assert (xavier, embedded) == (2 * 4 + 1, 2 * 2 + 1)


def test_imfs_patches_start_xavier_uniform():
    weight = ImfTransformer(
        image_size=16,
        patch_size=2,
        channels=4,
        num_classes=9,
        width=192,
        depth=1,
        head_depth=1,
        num_heads=3,
        generator=torch.Generator().manual_seed(0),
    ).patch_embedding.projection.weight.detach()
    bound = (6 / (2 * 2 * 4 + 192)) ** 0.5  # a patch is one input vector
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.03)  # of 3072 numbers: five deviations
