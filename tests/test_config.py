"""Configs: what is read, and what its defaults are. What is refused: tests/bad_input/test_config.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmf.config.sections import as_plain
from pmf.config.yaml_file import config_from_plain, dump_config, load_config, save_config
from pmf.distributed.batching import accumulation_steps
from pmf.optim.options import ema_names

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
VALID = "training:\n  max_steps: 10\ndata:\n  path: somewhere\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config
    assert config_from_plain(as_plain(config), "memory") == config


def test_defaults_are_the_papers_b_16_recipe(tmp_path):
    config = load_config(write(tmp_path, VALID))
    assert (config.training.global_batch_size, config.optimizer.lr, config.training.seed) == (1024, 1e-3, 42)
    objective = config.objective
    assert (objective.time_mean, objective.time_std, objective.noise_scale) == (0.8, 0.8, 1.0)
    assert (objective.data_proportion, objective.label_drop, objective.guidance_max) == (0.5, 0.1, 7.0)
    assert (objective.adaptive_power, objective.adaptive_epsilon) == (1.0, 0.01)
    assert config.ema.half_lives_kimg == [500, 1000, 2000]
    assert (config.sampling.omega, config.sampling.interval, config.sampling.num_steps) == (8.5, (0.1, 0.7), 1)


def test_scientific_notation_is_a_number_and_overrides_win(tmp_path):
    path = write(tmp_path, VALID + "optimizer:\n  lr: 1e-4\n")
    assert load_config(path).optimizer.lr == 1e-4
    config = load_config(path, ["optimizer.lr=2e-4", "sampling.interval=[0.2,0.6]", "ema.half_lives_kimg=[2000]"])
    assert (config.optimizer.lr, config.sampling.interval) == (2e-4, (0.2, 0.6))
    assert "sampling" in dump_config(config)


def test_words_of_yaml_1_1_stay_words(tmp_path):
    config = load_config(write(tmp_path, VALID + "  split: no\n"))
    assert config.data.split == "no"


def test_environment_variables_expand(tmp_path, monkeypatch):
    monkeypatch.setenv("PMF_TEST_FOLDER", "/images")
    config = load_config(write(tmp_path, "training:\n  max_steps: 1\ndata:\n  path: ${PMF_TEST_FOLDER}/train\n"))
    assert config.data.path == "/images/train"


def test_average_names_are_file_names():
    config = config_from_plain(
        {
            "training": {"max_steps": 1},
            "data": {"path": "x"},
            "ema": {"half_lives_kimg": [500, 0.5], "decays": [0.9999]},
            "sampling": {"ema": 0.5},
        },
        "test",
    )
    assert ema_names(config.ema) == ["500", "0.5", "0.9999"]
    assert config.sampling.ema == "0.5"


@pytest.mark.parametrize(
    ("global_batch", "micro", "world", "expected"),
    [(64, None, 1, 1), (64, None, 4, 1), (64, 8, 2, 4), (1024, 128, 8, 1)],
)
def test_micro_times_accumulation_times_world_is_global(global_batch, micro, world, expected, tmp_path):
    overrides = [f"training.global_batch_size={global_batch}"]
    if micro:
        overrides.append(f"training.micro_batch_size={micro}")
    config = load_config(write(tmp_path, VALID), overrides)
    accumulation = accumulation_steps(config.training.global_batch_size, config.training.micro_batch_size, world)
    assert accumulation == expected
    assert (micro or global_batch // world) * accumulation * world == global_batch


def test_impossible_worlds_offer_the_nearest_values(tmp_path):
    config = load_config(write(tmp_path, VALID), ["training.global_batch_size=64"])
    with pytest.raises(ValueError, match=r"64, not a multiple of the 3 processes; nearest multiples: 63, 66"):
        accumulation_steps(config.training.global_batch_size, config.training.micro_batch_size, 3)
