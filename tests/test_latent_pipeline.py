"""From latents to a measured checkpoint, for each method that lives there: train, resume, sample, decode, FID."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from pmf.auto_batch.candidate import measure
from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.config.yaml_file import config_from_plain, load_config
from pmf.data.autoencoder import autoencoder_sha256, load_autoencoder
from pmf.flow.objective import create_objective
from pmf.generation.noise import NoiseOptions, image_noise
from pmf.training.trainer import Trainer
from tests.latents import NUM_CLASSES, SIZE
from tests.launch import run_command
from tests.runs import metrics_of, tensors_of

STEPS = 20
EXTRACTOR = "tests.evaluation.networks:create"
METHODS = {
    "meanflow": {
        "model": {"name": "dit_tiny_2"},
        "objective": {"name": "meanflow", "guidance_scale": 1.0, "guidance_mixing": 0.5},
        "sampling": {"omega": 1.0, "interval": [0.0, 1.0]},
    },
    "imf": {
        "model": {"name": "imf_tiny_2"},
        "objective": {"name": "imf"},
        "sampling": {"omega": 2.0, "interval": [0.2, 0.8]},
    },
}
IMAGES = 12


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def plain(method, encoded, autoencoder) -> dict:
    """A config of so many steps, which mirrors images and measures once on the way, without its output."""
    data = {"kind": "latents", "path": str(encoded()), "image_size": SIZE, "num_classes": NUM_CLASSES}
    return {
        **METHODS[method],
        "data": {
            **data,
            "autoencoder": str(autoencoder),
            "latent_normalization": method,
            "horizontal_flip": True,
            "num_workers": 0,
        },
        "training": {
            "global_batch_size": 16,
            "micro_batch_size": 8,
            "max_steps": STEPS,
            "mixed_precision": "no",
            "sample_every": 0,
            "checkpoint_every": 10,
            "log_every": 2,
            "num_threads": 1,
        },
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "ema": {"half_lives_kimg": [], "decays": [0.9]},
        "sampling": {**METHODS[method]["sampling"], "ema": "0.9", "batch_size": 5, "final_images": IMAGES},
    }


def config_of(plain: dict, run: Path, **training: object) -> Config:
    return config_from_plain({**plain, "training": {**plain["training"], "output_dir": str(run), **training}}, "test")


def train(config: Config) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    Trainer(config).train()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def trained(method, plain, jpegs, once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The run folder; FID against the JPEGs is measured at half of the steps and at the end."""
    evaluation = {"every_images": 160, "num_images": 20, "reference": str(jpegs), "extractor": EXTRACTOR}
    return once(f"{method} on latents", lambda run: train(config_of({**plain, "evaluation": evaluation}, run)))


def test_training_resumes_to_the_same_bits(trained, plain, tmp_path):
    train(config_of(plain, tmp_path / "run", max_steps=10))
    train(config_of(plain, tmp_path / "run"))
    ours, theirs = (tensors_of(run / "checkpoints" / f"step_{STEPS:08d}") for run in (tmp_path / "run", trained))
    assert ours.keys() == theirs.keys()
    assert {name.partition("/")[0] for name in ours} == {"model", "optimizer", "ema_0.9"}
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    resumed = [line for line in metrics_of(trained) if "fid" not in line]
    assert metrics_of(tmp_path / "run") == resumed
    assert all(math.isfinite(line["loss"]) for line in resumed)
    assert len({line["grad_norm"] for line in resumed}) == len(resumed) == STEPS // 2


def test_images_are_what_diffusers_decodes(trained, plain, autoencoder, method):
    """Network, sampler and normalisation by hand, then diffusers' decoder, against the PNGs that training wrote."""
    folder = trained / "samples" / f"final_step_{STEPS:08d}"
    pngs = np.stack([np.asarray(Image.open(folder / f"{i:06d}.png")) for i in range(IMAGES)])
    assert pngs.shape == (IMAGES, SIZE, SIZE, 3)
    assert (trained / "samples" / "final.png").exists()
    config = config_of(plain, trained)
    network = network_of(config, inference=True)
    weights = load_file(trained / "checkpoints" / f"step_{STEPS:08d}" / "ema_0.9.safetensors")
    network.load_state_dict(weights, strict=False)
    assert network.state_dict().keys() <= weights.keys()
    objective = create_objective(config.objective, num_classes=NUM_CLASSES)
    noise = image_noise(NoiseOptions(seed=42, shape=(4, SIZE // 8, SIZE // 8), scale=1.0), range(IMAGES))
    labels = torch.arange(IMAGES) % NUM_CLASSES
    options = config.sampling.model_dump(include={"omega", "interval", "num_steps", "sampler"})
    z = objective.generate(network.eval(), noise, labels, **options)
    if method == "meanflow":
        latents = z / 0.18215
    else:
        scale = torch.tensor([4.85503674, 5.31922414, 3.93725398, 3.9870003]).view(4, 1, 1)
        latents = z * scale + torch.tensor([0.86488, -0.27787343, 0.21616915, 0.3738409]).view(4, 1, 1)
    with torch.no_grad():
        decoded = load_autoencoder(str(autoencoder), torch.device("cpu")).decode(latents).sample
    wanted = ((decoded + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    # Bytes are rounded; batches of five and of twelve sum in other orders.
    assert np.abs(pngs - wanted).max() < 0.5 + 0.05
    assert pngs.std() > 20


def test_fid_against_the_pictures(trained, jpegs, tmp_path, autoencoder, method):
    """While training, afterwards from the checkpoint, and of its PNGs: all through the decoder."""
    during = [json.loads(file.read_text()) for file in sorted((trained / "evaluation").glob("step_*.json"))]
    assert [record["step"] for record in during] == [10, 20]
    common = ("--reference", str(jpegs), "--extractor", EXTRACTOR)
    checkpoint = ("--checkpoint", str(trained), "--num-images", "20", "--seed", "42")
    files = [tmp_path / "fid.json", tmp_path / "pngs.json"]
    done = run_command("eval.py", "fid", *checkpoint, *common, "--output", str(files[0]), ranks=2)
    assert done.returncode == 0, done.stderr
    done = run_command("eval.py", "sample", *checkpoint, "--output", str(tmp_path / "pngs"))
    assert done.returncode == 0, done.stderr
    images = ("--images", str(tmp_path / "pngs"))
    done = run_command("eval.py", "fid", *images, *common, "--output", str(files[1]))
    assert done.returncode == 0, done.stderr
    records = [json.loads(file.read_text()) for file in files]
    # The same images: features in other batches, and sums over ranks in another order.
    assert [record["fid"] for record in records] == pytest.approx([during[-1]["fid"]] * 2, rel=1e-4)
    text = json.dumps(records[0])
    for said in (str(autoencoder), autoencoder_sha256(str(autoencoder)), f'"latent_normalization": "{method}"'):
        assert said in text
    assert records[0]["image_shape"] == [3, SIZE, SIZE]


def test_the_summary_counts_the_decoder(trained, plain, method, tmp_path, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    Trainer(config_of(plain, tmp_path / "run"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " parameters; a step takes " in line]
    assert "; decoding takes 0.0" in line
    gone = {**plain, "data": {**plain["data"], "autoencoder": str(tmp_path / "none")}}
    gone["sampling"] = {**plain["sampling"], "final_images": 0}  # which would need it
    AcceleratorState._reset_state(reset_partial_state=True)
    Trainer(config_of(gone, tmp_path / "other"))
    assert "; decoding is not counted: data.autoencoder" in capsys.readouterr().out


def test_a_trial_of_a_batch_size_takes_made_up_latents(plain, tmp_path):
    result = measure(config_of(plain, tmp_path / "run"), str(tmp_path / "measured"), steps=3)
    assert not result.out_of_memory
    assert result.seconds > 0


@pytest.mark.slow
def test_a_sweep_and_the_largest_batch(trained, jpegs, plain, tmp_path, method):
    steps = ("--num-steps", "1", "2")
    reference = ("--reference", str(jpegs), "--extractor", EXTRACTOR, "--num-images", "20")
    done = run_command(
        "eval.py", "sweep", "--checkpoint", str(trained), *reference, *steps, "--output", str(tmp_path / "sweep")
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "sweep").glob("**/*.json"))) >= 2
    config = tmp_path / "run.yaml"
    training = {**plain["training"], "global_batch_size": 2, "output_dir": str(tmp_path / "run")}
    config.write_text(yaml.safe_dump({**plain, "training": {**training, "micro_batch_size": 1}}))
    done = run_command("auto_batch.py", "--config", str(config), timeout=600, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert load_config(config).training.micro_batch_size in (1, 2)
    assert json.loads((tmp_path / "run.yaml.auto_batch.json").read_text())["how"] == "measured"
