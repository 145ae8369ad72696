"""Official networks of golden size: weights, a config for them, and how far our outputs are from theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from pmf.config.sections import Config
from pmf.generation.images import inference_network
from pmf.net.interface import Conditions
from tests.official import config_of, golden_dit_size, golden_imf_size, golden_size
from tests.parity.golden import Golden, relative_error

SIZES_AND_FILES = {
    "pmf": (golden_size, "A1_pmfdit_forward"),
    "imf": (golden_imf_size, "G_imf_forward"),
    "meanflow": (golden_dit_size, "H_meanflow_forward"),
}


class OfficialNetwork:
    """One of ``pmf``, ``imf`` and ``meanflow``.

    Attributes:
        weights: with official PyTorch names.
        size: the row of our table that the config names; the test puts it there, as ``golden``.
    """

    def __init__(self, name: str) -> None:
        size, file = SIZES_AND_FILES[name]
        self.name = name
        self.golden = Golden(file)
        self.weights = self.golden.group("params/")
        self.net = self.golden.meta["net"]
        self.size = size(self.net)

    def config(self) -> Config:
        """A recipe of this network; once its row is in the table."""
        kind, pixels = ("synthetic", 1) if self.name == "pmf" else ("latents", 8)
        return config_of("golden", pixels * self.net["input_size"], self.net["num_classes"], kind, ema=0.9999)

    def u_error(self, weights: dict[str, Tensor]) -> float:
        """Of what our network says with these weights, relative to what the official one says."""
        network = inference_network(self.config(), weights, torch.device("cpu"), where="test")
        given = self.golden.group("in/")
        zeros = torch.zeros_like(given["t"])  # MeanFlow's network is not told the guidance
        conditions = Conditions(
            t=given["t"],
            h=given["h"],
            omega=given.get("w", zeros + 1),
            t_min=given.get("t_min", zeros),
            t_max=given.get("t_max", zeros),
            labels=given["y"].long(),
        )
        with torch.no_grad():
            u = network(self.golden.image("in/x"), conditions, heads="u").u
        return relative_error(u, self.golden.image("out/u"))
