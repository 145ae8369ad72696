"""The recipes hold the papers' numbers, and say nothing that the defaults say already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.data.options import network_shape

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True, kw_only=True)
class PmfRecipe:
    """A column of pMF's table of hyper-parameters, and the parameters counted on the official networks."""

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


PMF = {
    "pmf_b_16": PmfRecipe(
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
    "pmf_b_32": PmfRecipe(
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
    "pmf_l_16": PmfRecipe(
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
    "pmf_l_32": PmfRecipe(
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
    "pmf_h_16": PmfRecipe(
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
    "pmf_h_32": PmfRecipe(
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


@dataclass(frozen=True, kw_only=True)
class MeanFlowRecipe:
    """Guidance of a MeanFlow model, and its parameters as they follow from the shapes of the official networks."""

    omega: float = 1.0
    kappa: float
    interval: tuple[float, float] = (0.0, 1.0)
    parameters: int


MEANFLOW = {
    "meanflow_b_4": MeanFlowRecipe(kappa=0.5, parameters=131_165_248),
    "meanflow_b_2": MeanFlowRecipe(kappa=0.5, parameters=131_091_472),
    "meanflow_m_2": MeanFlowRecipe(kappa=0.5, parameters=308_019_216),
    "meanflow_l_2": MeanFlowRecipe(omega=0.2, kappa=0.92, interval=(0.0, 0.8), parameters=459_137_040),
    "meanflow_xl_2": MeanFlowRecipe(omega=0.2, kappa=0.92, interval=(0.0, 0.75), parameters=676_440_592),
}


@dataclass(frozen=True, kw_only=True)
class ImfRecipe:
    """Evaluation settings of an iMF model, and its parameters; of inference, without the official unused layer."""

    omega: float
    interval: tuple[float, float]
    inference_parameters: int
    training_parameters: int


IMF = {
    "imf_b_2": ImfRecipe(
        omega=8.0, interval=(0.4, 0.65), inference_parameters=88_935_184, training_parameters=145_596_960
    ),
    "imf_m_2": ImfRecipe(
        omega=10.5, interval=(0.4, 0.6), inference_parameters=173_908_240, training_parameters=230_570_016
    ),
    "imf_l_2": ImfRecipe(
        omega=10.5, interval=(0.4, 0.6), inference_parameters=409_054_224, training_parameters=509_752_352
    ),
    "imf_xl_2": ImfRecipe(
        omega=8.0, interval=(0.42, 0.62), inference_parameters=610_415_632, training_parameters=711_113_760
    ),
}
ALL = (*PMF, *MEANFLOW, *IMF)
TRAINING_PARAMETERS = {
    **{name: recipe.training_parameters for name, recipe in (PMF | IMF).items()},
    **{name: recipe.parameters for name, recipe in MEANFLOW.items()},
}
INFERENCE_PARAMETERS = {
    **{name: recipe.inference_parameters for name, recipe in (PMF | IMF).items()},
    **{name: recipe.parameters for name, recipe in MEANFLOW.items()},
}


def recipe_config(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml")


def test_there_is_one_file_for_each_recipe():
    ours = {"digits", "digits_imf", "digits_meanflow", "one_gpu_64"}  # no paper's: tests/test_one_gpu.py has the last
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - ours == set(ALL)


@pytest.mark.parametrize("name", PMF)
def test_a_recipe_of_pmf_holds_the_papers_numbers(name):
    config, recipe = recipe_config(name), PMF[name]
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


@pytest.mark.parametrize("name", MEANFLOW)
def test_a_recipe_of_meanflow_holds_the_papers_numbers(name):
    config, recipe = recipe_config(name), MEANFLOW[name]
    objective = config.objective
    assert (objective.name, config.model.name) == ("meanflow", name.replace("meanflow", "dit"))
    assert (objective.guidance_scale, objective.guidance_mixing) == (recipe.omega, recipe.kappa)
    assert (objective.guidance_interval, objective.data_proportion) == (recipe.interval, 0.75)
    assert (config.training.global_batch_size, config.training.epochs) == (256, 240)
    assert config.optimizer.schedule == "constant"
    assert (config.sampling.omega, config.sampling.interval) == (1.0, (0.0, 1.0))  # has no meaning
    check_what_the_latent_recipes_share(config, "meanflow")


@pytest.mark.parametrize("name", IMF)
def test_a_recipe_of_imf_holds_the_papers_numbers(name):
    config, recipe = recipe_config(name), IMF[name]
    objective, optimizer = config.objective, config.optimizer
    assert (objective.name, config.model.name) == ("imf", name)
    assert (objective.guidance_beta, objective.guidance_max, objective.data_proportion) == (1.0, 7.0, 0.5)
    assert (config.training.global_batch_size, config.training.epochs) == (1024, 640)
    images, epochs = 1_281_167, 10
    assert (optimizer.schedule, optimizer.warmup_steps) == ("warmup_constant", epochs * (images // 1024))
    assert (config.sampling.omega, config.sampling.interval) == (recipe.omega, recipe.interval)
    check_what_the_latent_recipes_share(config, "imf")


def check_what_the_latent_recipes_share(config: Config, normalization: str) -> None:
    objective, optimizer, data = config.objective, config.optimizer, config.data
    assert (objective.time_mean, objective.time_std, objective.label_drop) == (-0.4, 1.0, 0.1)
    assert (objective.adaptive_power, objective.adaptive_epsilon) == (1.0, 0.01)
    assert (optimizer.name, optimizer.lr, optimizer.betas, optimizer.weight_decay) == ("adamw", 1e-4, (0.9, 0.95), 0.0)
    assert (config.ema.half_lives_kimg, config.ema.decays, config.sampling.ema) == ([], [0.9999], "0.9999")
    assert (data.kind, data.image_size, data.horizontal_flip) == ("latents", 256, False)
    assert (data.latent_normalization, network_shape(data)) == (normalization, (4, 32, 32))
    assert config.sampling.num_steps == 1


@pytest.mark.parametrize("inference", [True, False], ids=["inference", "training"])
@pytest.mark.parametrize("name", ALL)
def test_a_recipes_network_has_the_official_number_of_parameters(name, inference):
    with torch.device("meta"):
        network = network_of(recipe_config(name), inference=inference)
    expected = (INFERENCE_PARAMETERS if inference else TRAINING_PARAMETERS)[name]
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_states_only_what_differs_from_the_defaults(name):
    """But for the sampling section, which each one states whole: it belongs to the weights, not to the defaults."""
    config = recipe_config(name)
    stated = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert set(stated.pop("sampling")) == {"omega", "interval", "ema"}
    assert stated["training"].pop("output_dir") == f"runs/{name}"
    assert stated.pop("model") == {"name": config.model.name}
    assert stated["data"].pop("path") == f"datasets/imagenet-{'1k' if name in PMF else 'latents-256'}"
    stated.get("objective", {}).pop("name", None)
    for section, values in stated.items():
        defaults = type(getattr(config, section))().model_dump()
        assert {key for key, value in values.items() if defaults[key] == value} == set(), section
