"""The six recipes hold the paper's numbers, and say nothing that the defaults say already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.net.sizes import create_network

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A column of the paper's table of hyper-parameters, and the parameters counted on the official networks."""

    image_size: int
    epochs: int
    guidance_beta: float
    time_mean: float
    noise_scale: float
    uniform_time_fraction: float
    omega: float
    interval: tuple[float, float]
    ema: str
    perceptual_max_t: float
    inference_parameters: int
    training_parameters: int


RECIPES = {
    "pmf_b_16": Recipe(
        image_size=256,
        epochs=320,
        guidance_beta=1.0,
        time_mean=0.8,
        noise_scale=1.0,
        uniform_time_fraction=0.0,
        omega=8.5,
        interval=(0.1, 0.7),
        ema="2000",
        perceptual_max_t=0.8,
        inference_parameters=118_234_240,
        training_parameters=175_474_304,
    ),
    "pmf_b_32": Recipe(
        image_size=512,
        epochs=320,
        guidance_beta=1.0,
        time_mean=0.8,
        noise_scale=2.0,
        uniform_time_fraction=0.0,
        omega=6.5,
        interval=(0.1, 0.7),
        ema="2000",
        perceptual_max_t=0.8,
        inference_parameters=120_300_928,
        training_parameters=179_312_768,
    ),
    "pmf_l_16": Recipe(
        image_size=256,
        epochs=320,
        guidance_beta=2.0,
        time_mean=0.8,
        noise_scale=1.0,
        uniform_time_fraction=0.0,
        omega=7.0,
        interval=(0.2, 0.7),
        ema="1000",
        perceptual_max_t=0.8,
        inference_parameters=410_320_768,
        training_parameters=511_789_696,
    ),
    "pmf_l_32": Recipe(
        image_size=512,
        epochs=320,
        guidance_beta=1.0,
        time_mean=0.0,
        noise_scale=4.0,
        uniform_time_fraction=0.0,
        omega=7.5,
        interval=(0.2, 0.6),
        ema="2000",
        perceptual_max_t=0.6,
        inference_parameters=412_977_280,
        training_parameters=516_807_808,
    ),
    "pmf_h_16": Recipe(
        image_size=256,
        epochs=360,
        guidance_beta=1.0,
        time_mean=0.0,
        noise_scale=2.0,
        uniform_time_fraction=0.1,
        omega=7.0,
        interval=(0.2, 0.6),
        ema="1000",
        perceptual_max_t=0.6,
        inference_parameters=955_508_992,
        training_parameters=1_113_904_640,
    ),
    "pmf_h_32": Recipe(
        image_size=512,
        epochs=360,
        guidance_beta=1.0,
        time_mean=0.0,
        noise_scale=4.0,
        uniform_time_fraction=0.1,
        omega=5.5,
        interval=(0.1, 0.6),
        ema="500",
        perceptual_max_t=0.6,
        inference_parameters=959_050_240,
        training_parameters=1_120_397_312,
    ),
}


def recipe_config(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml")


def test_there_is_one_file_for_each_recipe():
    assert {path.stem for path in CONFIGS.glob("pmf_*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_the_papers_numbers(name):
    config, recipe = recipe_config(name), RECIPES[name]
    objective, sampling = config.objective, config.sampling
    ours = {
        "image_size": config.data.image_size,
        "epochs": config.training.epochs,
        **{key: getattr(objective, key) for key in ("guidance_beta", "time_mean", "noise_scale")},
        "uniform_time_fraction": objective.uniform_time_fraction,
        **{key: getattr(sampling, key) for key in ("omega", "interval", "ema")},
        "perceptual_max_t": config.perceptual.max_t,
    }
    assert ours == {key: getattr(recipe, key) for key in ours}
    # What all six share.
    perceptual = config.perceptual
    assert (perceptual.lpips, perceptual.lpips_factor) == (True, 0.4)
    assert (perceptual.convnext, perceptual.convnext_factor, perceptual.crop_size) == (True, 0.1, 224)
    training, optimizer = config.training, config.optimizer
    assert (training.global_batch_size, training.seed, config.data.horizontal_flip) == (1024, 42, False)
    assert (optimizer.name, optimizer.lr, optimizer.schedule) == ("muon", 1e-3, "constant")
    assert (optimizer.weight_decay, config.ema.half_lives_kimg) == (0.0, [500, 1000, 2000])
    assert (objective.time_std, objective.data_proportion, objective.guidance_max) == (0.8, 0.5, 7.0)
    assert (objective.parameterization, objective.label_drop, sampling.num_steps) == ("x", 0.1, 1)


@pytest.mark.parametrize("inference", [True, False], ids=["inference", "training"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_network_has_the_official_number_of_parameters(name, inference):
    config, recipe = recipe_config(name), RECIPES[name]
    with torch.device("meta"):
        network = create_network(
            config.model.name,
            image_size=config.data.image_size,
            num_classes=config.data.num_classes,
            channels=config.data.channels,
            inference=inference,
        )
    expected = recipe.inference_parameters if inference else recipe.training_parameters
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_only_what_differs_from_the_defaults(name):
    """But for the sampling section, which each one states whole: it belongs to the weights, not to the defaults."""
    stated = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert set(stated.pop("sampling")) == {"omega", "interval", "ema"}
    assert stated["training"].pop("output_dir") == f"runs/{name}"
    assert stated.pop("model") == {"name": name}
    assert stated["data"].pop("path") == "datasets/imagenet-1k"
    for section, values in stated.items():
        defaults = Config.model_fields[section].get_default(call_default_factory=True).model_dump()
        assert {key for key, value in values.items() if defaults[key] == value} == set(), section
