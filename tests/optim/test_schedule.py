"""Learning rates at the points that matter; the official curves are in tests/parity/test_schedules.py."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from pmf.errors import UserError
from pmf.optim.options import SCHEDULES, OptimizerConfig
from pmf.optim.schedule import learning_rate


def config_of(schedule: str, **settings) -> OptimizerConfig:
    return OptimizerConfig(schedule=schedule, lr=0.5, **settings)


def test_a_new_schedule_is_a_function_and_a_row(monkeypatch):
    with pytest.raises(ValidationError, match="'constant', 'warmup_constant' or 'warmup_cosine'"):
        config_of("halving")
    monkeypatch.setitem(SCHEDULES, "halving", lambda config, made, total: config.lr * 0.5**made)
    assert [learning_rate(config_of("halving"), count, 10) for count in range(3)] == [0.5, 0.25, 0.125]


def test_constant():
    assert {learning_rate(config_of("constant"), count, 10) for count in range(12)} == {0.5}


def test_warmup_starts_at_zero_and_ends_at_the_peak():
    config = config_of("warmup_constant", warmup_steps=4)
    assert [learning_rate(config, count, 10) for count in range(6)] == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]


def test_cosine_reaches_its_floor_one_warmup_before_the_end():
    config = config_of("warmup_cosine", warmup_steps=4, min_lr_factor=0.2)
    rates = [learning_rate(config, count, 20) for count in range(25)]
    assert rates[:5] == [0.0, 0.125, 0.25, 0.375, 0.5]
    assert math.isclose(rates[10], 0.3) and rates[15] > 0.1 and all(math.isclose(rate, 0.1) for rate in rates[16:])


def test_cosine_without_warmup_reaches_zero_at_the_end():
    assert learning_rate(config_of("warmup_cosine"), 0, 10) == 0.5
    assert learning_rate(config_of("warmup_cosine"), 10, 10) == 0.0


def test_cosine_without_room_is_refused():
    with pytest.raises(UserError, match=r"optimizer.warmup_steps is 5.*the run has 10; use at most 4"):
        learning_rate(config_of("warmup_cosine", warmup_steps=5), 0, 10)
    assert learning_rate(config_of("warmup_cosine", warmup_steps=4), 0, 10) == 0.0
