"""The table of sizes: every row makes its network, and a row of another architecture needs nothing but itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pmf.checkpoint.saved_weights import load_strictly
from pmf.errors import UserError
from pmf.net.base import BaseNetwork
from pmf.net.sizes import SIZES, NetworkSize, create_network, find_architecture


class Mixer(BaseNetwork):
    """One head for sampling, another that only training uses."""

    training_only = ("second.",)

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        num_classes: int,
        width: int,
        inference: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.heads = "u" if inference else "uv"
        self.first = nn.Linear(channels * (image_size // patch_size) ** 2, width)
        self.labels = nn.Embedding(num_classes + 1, width)
        self.second = None if inference else nn.Linear(width, width)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, z: Tensor) -> Tensor:
        return self.first(z.flatten(1))


# Parameters, in training and for inference, of the networks for latents of 4 channels and 1000 classes, whatever their
# side; computed from the shapes in the papers. iMF's are also those of the official code (tests/parity).
TOTALS = {
    "imf_b_2": (145_596_960, 88_935_184),
    "imf_m_2": (230_570_016, 173_908_240),
    "imf_l_2": (509_752_352, 409_054_224),
    "imf_xl_2": (711_113_760, 610_415_632),
    "dit_s_2": (33_105_424, 33_105_424),
    "dit_s_4": (33_142_336, 33_142_336),
    "dit_s_8": (33_289_984, 33_289_984),
    "dit_b_2": (131_091_472, 131_091_472),
    "dit_b_4": (131_165_248, 131_165_248),
    "dit_b_8": (131_460_352, 131_460_352),
    "dit_m_2": (308_019_216, 308_019_216),
    "dit_m_4": (308_117_568, 308_117_568),
    "dit_m_8": (308_510_976, 308_510_976),
    "dit_l_2": (459_137_040, 459_137_040),
    "dit_l_4": (459_235_392, 459_235_392),
    "dit_l_8": (459_628_800, 459_628_800),
    "dit_xl_2": (676_440_592, 676_440_592),
    "dit_xl_4": (676_551_232, 676_551_232),
    "dit_xl_8": (676_993_792, 676_993_792),
}


@pytest.mark.parametrize("name", SIZES)
def test_every_row_makes_a_network(name):
    with torch.device("meta"):
        network, light = (
            create_network(name, image_size=64, num_classes=1000, channels=4, inference=inference)
            for inference in (False, True)
        )
    assert type(network) is find_architecture(name)
    assert light.heads == "u"
    names, kept = set(network.state_dict()), set(light.state_dict())
    assert kept == {name for name in names if not network.is_training_only(name)}
    assert network.heads == ("uv" if kept < names else "u")
    found = tuple(sum(parameter.numel() for parameter in made.parameters()) for made in (network, light))
    assert found == TOTALS.get(name, found)


@pytest.mark.parametrize("architecture", [Mixer, f"{__name__}:Mixer"], ids=["class", "name"])
def test_a_row_added_at_run_time_is_an_architecture_of_its_own(architecture, monkeypatch):
    monkeypatch.setitem(SIZES, "mixer", NetworkSize(architecture, patch_size=4, width=5))
    network, light = (
        create_network("mixer", image_size=8, num_classes=2, inference=inference, generator=torch.Generator())
        for inference in (False, True)
    )
    assert isinstance(network, Mixer)
    assert network.first.weight.shape == (5, 12)
    load_strictly(light, network.state_dict(), "here")
    assert torch.equal(light(torch.ones(1, 3, 2, 2)), network(torch.ones(1, 3, 2, 2)))
    network.compile_blocks()
    network.checkpoint_blocks()
    assert not network.find_blocks() and not network.carries_tangents
    with pytest.raises(UserError, match=r"data.image_size is 9, .* mixer's patch size 4; use 8 or 12"):
        create_network("mixer", image_size=9, num_classes=2)
    with pytest.raises(TypeError, match="depth"):
        monkeypatch.setitem(SIZES, "deep", NetworkSize(architecture, patch_size=4, width=5, depth=3))
        create_network("deep", image_size=8, num_classes=2)


def test_sizes_are_checked_in_one_line():
    with pytest.raises(UserError, match=r"choose one of: pmf_b_16, pmf_b_32"):
        create_network("pmf_x", image_size=8, num_classes=4)
    with pytest.raises(UserError, match=r"choose one of: pmf_b_16, pmf_b_32"):
        find_architecture("pmf_x")
    with pytest.raises(UserError, match=r"data.image_size is 250, .* patch size 16; use 240 or 256"):
        create_network("pmf_b_16", image_size=250, num_classes=4)
    with pytest.raises(
        UserError, match=r"data.image_size is 264, of which latents have a side of 33, .* use 256 or 272"
    ):
        create_network("dit_b_2", image_size=33, downsampling=8, num_classes=4)
    assert {"pmf_b_16", "pmf_b_32", "pmf_l_16", "pmf_l_32", "pmf_h_16", "pmf_h_32", *TOTALS} <= SIZES.keys()
