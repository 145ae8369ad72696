"""Golden E: learning rates and EMA betas at the official counts."""

from __future__ import annotations

import pytest
import torch

from pmf.optim.ema import half_life_decay
from pmf.optim.options import OptimizerConfig
from pmf.optim.schedule import learning_rate
from tests.parity.golden import Golden

# The official EMA counts this many images a step, whatever the batch.
OFFICIAL_IMAGES_PER_STEP = 1024


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("E_schedules")


def test_learning_rates(golden):
    names = {"warmup_const": "warmup_constant"}
    assert golden.meta["lr_cases"]
    for case, meta in golden.meta["lr_cases"].items():
        rates = golden[f"lr/{case}"].tolist()
        per_epoch = meta["steps_per_epoch"]
        config = OptimizerConfig(
            lr=meta["base_lr"],
            schedule=names.get(meta["lr_schedule"], meta["lr_schedule"]),
            warmup_steps=meta["warmup_epochs"] * per_epoch,
            min_lr_factor=meta["lr_min_factor"] or 0.0,
        )
        ours = [learning_rate(config, count, meta["num_epochs"] * per_epoch) for count in range(len(rates))]
        # 1e-6 of the rate; near a floor of 0, two float32 roundings of the official 1 + cos (measured 1.2e-7)
        assert ours == pytest.approx(rates, rel=1e-6, abs=2e-7 * meta["base_lr"]), case


def test_half_life_betas(golden):
    cases = {key: key.split("_")[2] for key in golden.group("") if key.startswith("ema/beta_halflife_")}
    assert cases
    for key, half_life in cases.items():
        ours = [
            half_life_decay(float(half_life), step * OFFICIAL_IMAGES_PER_STEP, OFFICIAL_IMAGES_PER_STEP)
            for step in golden["ema/steps"].tolist()
        ]
        # float32 of the official beta, which is at most 1: one rounding of 6e-8
        torch.testing.assert_close(torch.tensor(ours), golden[key], rtol=0, atol=1e-7)
