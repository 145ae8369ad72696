"""Which parameter is moved by what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pmf.optim.groups import create_optimizer, embedding_table_names, is_linear_weight, parameter_groups
from pmf.optim.options import OptimizerConfig


class Small(nn.Module):
    """One parameter of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.expansion = nn.Conv2d(8, 6, 1)
        self.table = nn.Embedding(11, 6)
        self.tokens = nn.Parameter(torch.zeros(1, 4, 6))
        self.gate = nn.Parameter(torch.zeros(6))
        self.norm = nn.LayerNorm(6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.frozen = nn.Linear(6, 2).requires_grad_(False)


MATRICES = ["blocks.0.weight", "blocks.1.weight"]
REST = [
    *("tokens", "gate", "patches.weight", "patches.bias", "expansion.weight", "expansion.bias", "table.weight"),
    *("norm.weight", "norm.bias", "blocks.0.bias", "blocks.1.bias"),
]


def names_by_kind(network: nn.Module, config: OptimizerConfig) -> dict[str, list[str]]:
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {g["kind"]: sorted(names[p] for p in g["params"]) for g in parameter_groups(network, config)}


def test_matrices_of_linear_layers_go_to_muon_and_the_rest_to_nadamw():
    network = Small()
    assert embedding_table_names(network) == {"table.weight"}
    assert names_by_kind(network, OptimizerConfig()) == {"muon": sorted(MATRICES), "nadamw": sorted(REST)}


@pytest.mark.parametrize("name", ["nadamw", "adamw"])
def test_one_adam_for_everything(name):
    assert names_by_kind(Small(), OptimizerConfig(name=name)) == {name: sorted(MATRICES + REST)}


def test_the_rule_needs_only_a_name_and_a_tensor():
    matrix = torch.zeros(3, 4)
    assert not is_linear_weight("table", matrix, {"table"})
    assert is_linear_weight("other", matrix, {"table"})
    assert not is_linear_weight("tokens", matrix[None], set())


def test_settings_reach_every_group():
    config = OptimizerConfig(lr=0.25, momentum=0.5, betas=(0.25, 0.75), eps=1e-3, weight_decay=0.125)
    for group in create_optimizer(Small(), config).param_groups:
        assert (group["lr"], group["momentum"], group["betas"]) == (0.25, 0.5, (0.25, 0.75))
        assert (group["eps"], group["weight_decay"], group["step"]) == (1e-3, 0.125, 0)


@pytest.mark.parametrize(("precision", "dtype"), [("auto", None), ("float32", None), ("bfloat16", torch.bfloat16)])
def test_precision_of_newton_schulz_on_a_cpu(precision, dtype):
    optimizer = create_optimizer(Small(), OptimizerConfig(newton_schulz=precision))
    assert {group["newton_schulz_dtype"] for group in optimizer.param_groups} == {dtype}
