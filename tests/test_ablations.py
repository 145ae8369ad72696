"""Every ablation of docs/recipes.md is one line of overrides, trains, and samples."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import pytest
import torch

from pmf.config.yaml_file import load_config
from pmf.training.trainer import Trainer
from tests.launch import ROOT, TINY
from tests.perceptual.published import thin_lpips, write_weights

DOCUMENT = (ROOT / "docs" / "recipes.md").read_text().partition("## Ablations")[2]
# | what | `key=value ...` | FID |
ROWS = re.findall(r"^\| [^|]+ \| `(\S+=[^`]+)` \| ([\d.]+|-) \|$", DOCUMENT, flags=re.MULTILINE)

# The paper's table of ablations, by the switch that we have for each row.
PAPER = {
    "perceptual.lpips=false perceptual.convnext=false": 9.56,
    "perceptual.convnext=false": 5.62,
    "objective.parameterization=u": 164.89,
    "optimizer.name=adamw": 18.88,
    "objective.parameterization=linear": 34.61,
    "objective.parameterization=edm": 14.43,
    "objective.parameterization=scm": 13.81,
    "objective.data_proportion=1": 194.53,
    "objective.data_proportion=0 objective.r_distribution=zero": 389.28,
    "objective.r_distribution=zero": 106.59,
}


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory) -> Iterator[list[str]]:
    with thin_lpips():  # in the file and in the runs
        yield write_weights(tmp_path_factory.mktemp("weights"))


def test_the_document_has_the_papers_numbers():
    assert {switch: float(fid) for switch, fid in ROWS if fid != "-"} == PAPER


@pytest.mark.parametrize("switch", [switch for switch, _ in ROWS])
def test_an_ablation_trains_and_samples(switch, perceptual, tmp_path):
    # As in the recipes, both perceptual terms are on, unless the switch says otherwise.
    overrides = [
        *perceptual,
        *TINY,
        *switch.split(),
        "training.global_batch_size=8",
        "training.max_steps=3",
        "training.log_every=1",
        "training.sample_every=3",
    ]
    run = tmp_path / "run"
    recipe = load_config(ROOT / "configs" / "pmf_b_16.yaml")
    config = load_config(ROOT / "configs" / "digits.yaml", [*overrides, f"training.output_dir={run}"])
    for key in re.findall(r"(\w+\.\w+)=", switch):
        section, _, name = key.partition(".")
        ours, papers = (getattr(getattr(c, section), name) for c in (config, recipe))
        assert ours != papers, f"{key} is the recipe's own value: no ablation"

    trainer = Trainer(config)
    before = {name: weight.detach().clone() for name, weight in trainer.state.network.named_parameters()}
    trainer.train()
    still = [name for name, weight in trainer.state.network.named_parameters() if torch.equal(weight, before[name])]
    assert still == []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(line[key]) for line in lines for key in ("loss_u", "loss_v", "grad_norm"))
    assert lines[-1]["skipped"] == 0
    assert (run / "samples" / "step_00000003.png").stat().st_size > 0
