"""What the tests of eval.py's images share: weights in one file, and a verb called in the tests' process."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from pmf.checkpoint.saved_weights import save_weights
from pmf.config.yaml_file import load_config
from pmf.net.sizes import create_network
from tests.launch import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The digits recipe's network with no weight at zero, as one file."""
    generator = torch.Generator().manual_seed(0)
    network = create_network("pmf_tiny_2", image_size=8, num_classes=10, channels=1, generator=generator)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in network.state_dict().items()
    }
    path = tmp_path_factory.mktemp("run") / "network.safetensors"
    save_weights(path, tensors, load_config(DIGITS))
    return path


@pytest.fixture
def call(monkeypatch):
    """A verb of eval.py in this process."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["eval.py", *map(str, arguments)])
        importlib.import_module("eval").main()

    return run
