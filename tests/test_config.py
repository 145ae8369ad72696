"""Configs: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmf.batching import accumulation_steps
from pmf.config import as_plain, ema_names
from pmf.configfile import config_from_plain, dump_config, load_config, save_config
from pmf.errors import UserError

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


# text, overrides, and the whole message after the place.
BAD = {
    "unknown key": (
        VALID + "optimizer:\n  learning_rate: 1\n",
        [],
        "run.yaml:6: unknown key optimizer.learning_rate",
    ),
    "typo": (
        VALID + "optimizer:\n  schedul: constant\n",
        [],
        "run.yaml:6: unknown key optimizer.schedul; did you mean optimizer.schedule?",
    ),
    "typo in a choice": (
        VALID + "optimizer:\n  name: moun\n",
        [],
        "run.yaml:6: optimizer.name is 'moun': input should be 'muon', 'nadamw' or 'adamw' (did you mean 'muon'?)",
    ),
    "number in quotes": (
        "training:\n  max_steps: '10'\n",
        [],
        "run.yaml:2: training.max_steps is '10': input should be a valid integer",
    ),
    "duplicate key": (
        VALID + "optimizer:\n  lr: 1\n  lr: 2\n",
        [],
        "run.yaml:7: optimizer.lr stands here a second time (first at",
    ),
    "invalid yaml": ("training: {max_steps: 1\n", [], "run.yaml:2:1: invalid YAML:"),
    "list": ("- 1\n", [], "run.yaml:1: a config is a mapping of sections: model, objective, perceptual, data"),
    "tag": (
        "data: !!python/object:os.system x\n",
        [],
        "run.yaml:1: data has the tag tag:yaml.org,2002:python/object:os.system",
    ),
    "unset variable": ("data:\n  path: ${PMF_SURELY_UNSET}\n", [], "run.yaml:2: data.path uses ${PMF_SURELY_UNSET}"),
    "nan": (VALID, ["optimizer.lr=.nan"], "command line: optimizer.lr=.nan: optimizer.lr is nan"),
    "negative lr": (VALID, ["optimizer.lr=-1"], "optimizer.lr is -1: input should be greater than or equal to 0"),
    "half-life 0": (VALID, ["ema.half_lives_kimg=[0]"], "ema.half_lives_kimg.0 is 0: input should be greater than 0"),
    "micro batch": (
        VALID,
        ["training.global_batch_size=100", "training.micro_batch_size=30"],
        "training.micro_batch_size is 30, which does not divide training.global_batch_size 100; "
        "nearest divisors: 25, 50",
    ),
    "interval": (VALID, ["sampling.interval=[0.7, 0.1]"], "must be [t_min, t_max] with t_min < t_max"),
    "interval length": (
        VALID,
        ["sampling.interval=[0.7]"],
        "sampling.interval takes 2 numbers with commas between, e.g. sampling.interval=0.1,0.7",
    ),
    "no length": ("data:\n  path: x\n", [], "training.max_steps or training.epochs must be given, and not both"),
    "two lengths": (VALID, ["training.epochs=3"], "training.max_steps or training.epochs must be given, and not both"),
    "warm-up": (
        VALID,
        ["optimizer.schedule=warmup_constant", "optimizer.warmup_steps=11"],
        "optimizer.warmup_steps is 11, more than training.max_steps 10",
    ),
    "warm-up of a constant": (VALID, ["optimizer.warmup_steps=5"], "needs optimizer.schedule: warmup_constant"),
    "no path": ("training:\n  max_steps: 1\n", [], "data.path is missing; data.kind parquet needs"),
    "unknown average": (VALID, ["sampling.ema=77"], 'sampling.ema is "77"; choose one of: 500, 1000, 2000, online'),
    "compiled jvp": (
        VALID,
        ["training.compile=true", "objective.derivative=jvp"],
        "objective.derivative is jvp, which cannot pass compiled blocks",
    ),
    "not an override": (VALID, ["seed"], "command line: seed: an override is section.key=value"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_get_one_line_with_the_place(case, tmp_path):
    text, overrides, message = BAD[case]
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, text), overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read this config"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("global_batch", "micro", "world", "expected"),
    [(64, None, 1, 1), (64, None, 4, 1), (64, 8, 2, 4), (1024, 128, 8, 1)],
)
def test_micro_times_accumulation_times_world_is_global(global_batch, micro, world, expected, tmp_path):
    overrides = [f"training.global_batch_size={global_batch}"]
    if micro:
        overrides.append(f"training.micro_batch_size={micro}")
    config = load_config(write(tmp_path, VALID), overrides)
    accumulation = accumulation_steps(config.training, world)
    assert accumulation == expected
    assert (micro or global_batch // world) * accumulation * world == global_batch


def test_impossible_worlds_offer_the_nearest_values(tmp_path):
    config = load_config(write(tmp_path, VALID), ["training.global_batch_size=64"])
    with pytest.raises(ValueError, match=r"64, not a multiple of the 3 processes; nearest multiples: 63, 66"):
        accumulation_steps(config.training, 3)
