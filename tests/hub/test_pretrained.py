"""A model's folder: the same images from it, by pmf, eval.py and diffusers, and a card of facts."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import pmf
from pmf.checkpoint.places import list_checkpoints
from pmf.config.sections import as_plain
from pmf.config.yaml_file import config_from_plain
from pmf.hub.card import model_card
from tests.latents import write_latent_weights

FILES = {"README.md", "config.json", "model.safetensors", "model_index.json", "pipeline.py", "weights"}


@pytest.fixture(scope="module")
def published(digits_run, tmp_path_factory) -> tuple[pmf.Generator, Path]:
    """A model, and the folder that it was saved in: of a run with an evaluation of these weights and of others."""
    run = tmp_path_factory.mktemp("published") / "run"
    shutil.copytree(digits_run, run)
    (run / "evaluation").mkdir()
    images = {"ema": "10", "omega": 1.5, "interval": [0.0, 1.0], "num_steps": 1}
    record = {"fid": 7.123456, "num_images": 2000, "images": images, "reference": {"images": "digits"}}
    for name, changes in {"of_these": {"step": 12}, "earlier": {"step": 6, "fid": 99.0}}.items():
        changed = {"command": ["/home/someone/train.py"], **record, **changes}
        (run / "evaluation" / f"{name}.json").write_text(json.dumps(changed))
    model = pmf.load(run, device="cpu")
    folder = run.parent / "digits-pmf"
    model.save_pretrained(folder)
    return model, folder


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_a_folder_makes_the_same_images_to_the_bit(published, monkeypatch, tmp_path):
    model, folder = published
    assert {path.name for path in folder.iterdir()} == FILES
    loaded = pmf.load(folder, device="cpu")
    expected = model.generate([3, 7], num_images=20, seed=2, omega=2, output="tensor")
    assert torch.equal(loaded.generate([3, 7], num_images=20, seed=2, omega=2, output="tensor"), expected)
    assert loaded.class_names == tuple("0123456789")
    for number, source in enumerate((folder, folder / "model.safetensors")):
        output = tmp_path / str(number)
        given = ("--checkpoint", source, "--output", output, "--num-images", 20, "--labels", "3,7")
        monkeypatch.setattr("sys.argv", ["eval.py", "sample", *map(str, given), "--seed", "2", "--omega", "2"])
        importlib.import_module("eval").main()
        written = pixels([Image.open(path) for path in sorted(output.glob("*.png"))])
        np.testing.assert_array_equal(written, expected[:, 0])


def test_the_card_tells_what_is_recorded_and_nothing_else(published, digits_run, tmp_path):
    _, folder = published
    card = ModelCard.load(folder / "README.md")
    front = card.data.to_dict()
    assert (front["library_name"], front["pipeline_tag"]) == ("pmf", "unconditional-image-generation")
    assert 'pmf.load("digits-pmf")' in card.text
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in card.text.splitlines() if "|" in line]
    weights = f"{list_checkpoints(digits_run)[-1].name}/ema_10.safetensors"
    facts = dict(row for row in rows if len(row) == 2)
    assert facts["weights"].startswith(weights)
    assert (facts["average of the weights"], facts["images seen"], facts["optimizer steps"]) == ("10", "192", "12")
    assert (facts["data"], facts["images"]) == ("digits", "8 pixels, 1 channel(s), 10 classes")
    assert facts["commit of the library"] == json.loads((digits_run / "environment.json").read_text())["commit"]
    measured = [row for row in rows if len(row) == 9][2:]
    assert measured == [("7.123", "-", "2000", "digits", "-", "1.5", "[0.0, 1.0]", "1", "-")]
    assert "More Information Needed" not in card.content and "/home/someone" not in (folder / "config.json").read_text()

    # Saved again from there, it tells the same; from a bare file, what is known is less and nothing is made up.
    pmf.load(folder, device="cpu").save_pretrained(tmp_path / "digits-pmf")
    assert (tmp_path / "digits-pmf" / "README.md").read_text() == card.content
    shutil.copy(list_checkpoints(digits_run)[-1] / "ema_10.safetensors", tmp_path / "w.safetensors")
    pmf.load(tmp_path / "w.safetensors", device="cpu").save_pretrained(tmp_path / "bare")
    bare = (tmp_path / "bare" / "README.md").read_text()
    for absent in ("images seen", "optimizer steps", "average of the weights", "commit", "None"):
        assert absent not in bare
    assert "No evaluation of these weights is recorded." in bare


def test_the_card_names_licences_of_perceptual_networks_and_the_autoencoder(autoencoder, tmp_path):
    plain = {"perceptual": {"lpips": True, "convnext": True}, "data": {"path": "x"}, "training": {"epochs": 1}}
    card = model_card("me/b16", config_from_plain(plain, "test"), ["tench", "goldfish"], {"weights": "w"})
    assert "timm/convnextv2_base.fcmae_ft_in22k_in1k | CC-BY-NC 4.0, non-commercial use only |" in card
    assert "vgg16-397923af.pth" in card and "BSD" in card
    latent = pmf.load(write_latent_weights(tmp_path / "w.safetensors", autoencoder), device="cpu")
    latent.save_pretrained(tmp_path / "l")
    again = pmf.load(tmp_path / "l", device="cpu").generate(1, output="tensor")
    assert again.shape == (1, 3, 32, 32) and torch.equal(again, latent.generate(1, output="tensor"))
    told = (tmp_path / "l" / "README.md").read_text()
    assert f"decoded by `{autoencoder}`, which is not part of this folder" in told
    assert "No perceptual network took part" in told


def test_nothing_published_names_a_place(published, digits_run, tmp_path):
    model, _ = published
    plain = as_plain(model.config)
    plain["training"]["output_dir"] = "/home/someone/runs/digits"
    plain["data"]["path"] = "/home/someone/sets/digits"
    plain["perceptual"]["lpips_weights"] = ["/home/someone/vgg.pth", "../someone/lpips.pth"]
    plain["evaluation"] |= dict.fromkeys(("reference", "extractor", "extractor_weights"), "/home/someone/s.npz")
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    (run / "evaluation").mkdir(exist_ok=True)
    record = {"fid": 7.0, "step": 12, "images": {"ema": "10", "checkpoint": "/home/someone/runs/digits"}}
    record["reference"] = {"file": "/home/someone/s.npz", "features_of": {"images": "/home/someone/sets"}}
    (run / "evaluation" / "a.json").write_text(json.dumps(record))
    loaded = pmf.load(run, device="cpu")
    loaded.config = config_from_plain(plain, "test")
    loaded.save_pretrained(tmp_path / "digits")
    for file in (tmp_path / "digits").rglob("*"):
        assert file.is_dir() or b"someone" not in file.read_bytes(), file
    told = json.loads((tmp_path / "digits" / "config.json").read_text())
    assert told["config"]["training"]["output_dir"] == "runs/default"
    assert (told["config"]["data"]["path"], told["config"]["evaluation"]["reference"]) == ("digits", "s.npz")
    assert told["training"]["evaluations"][0]["reference"]["file"] == "s.npz"
    card = (tmp_path / "digits" / "README.md").read_text()
    assert "| data | digits `digits` |" in card and "| s.npz |" in card
    again = pmf.load(tmp_path / "digits", device="cpu")
    assert torch.equal(again.generate(3, output="tensor"), model.generate(3, output="tensor"))


@pytest.mark.parametrize(
    "training",
    [
        {"weights": "w", "step": "many"},
        {"weights": ["w"]},
        {"weights": "w", "evaluations": 3},
        {"weights": "w", "evaluations": [{"fid": "low"}, {"fid": 1.0, "images": []}, {"fid": 2.5}], "later": 1},
        {},
        [],
    ],
)
def test_what_a_foreign_folder_says_of_its_training_is_not_trusted(published, tmp_path, training):
    shutil.copytree(published[1], tmp_path / "theirs")
    record = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**record, "training": training}))
    pmf.load(tmp_path / "theirs", device="cpu").save_pretrained(tmp_path / "ours")
    told = json.loads((tmp_path / "ours" / "config.json").read_text())["training"]
    usable = isinstance(training, dict) and "later" in training
    assert told["weights"] == "w" if usable else told["weights"].startswith("theirs/model.safetensors ")
    assert told["evaluations"] == ([{"fid": 2.5}] if usable else [])


def test_a_folder_is_complete_or_absent(published, tmp_path):
    model, _ = published
    (tmp_path / "there").mkdir()
    model.save_pretrained(tmp_path / "there")  # empty
    with pytest.raises(pmf.UserError, match="there: is there already; remove it or choose another name"):
        model.save_pretrained(tmp_path / "there")
    (tmp_path / "file").write_text("")
    with pytest.raises(pmf.UserError, match=r"cannot be written \(Not a directory\)"):
        model.save_pretrained(tmp_path / "file" / "model")
    # Weights that are not there when half of the folder is: nothing of it is left.
    model.network.weights_that_are_not_saved = torch.nn.Parameter(torch.zeros(1, device="meta"))
    try:
        with pytest.raises(NotImplementedError):
            model.save_pretrained(tmp_path / "half")
    finally:
        del model.network.weights_that_are_not_saved
    assert {path.name for path in tmp_path.iterdir()} == {"there", "file"}


@pytest.fixture
def diffusers(monkeypatch, tmp_path):
    found = pytest.importorskip("diffusers", reason="needs diffusers: uv sync --extra hub")
    from diffusers.utils import dynamic_modules_utils

    # It copies the code of pipelines to a folder of its own, under the user's home.
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return found


def pipeline(diffusers, folder, **options):
    return diffusers.DiffusionPipeline.from_pretrained(
        str(folder), custom_pipeline=str(folder), trust_remote_code=True, **options
    )


def test_diffusers_makes_the_same_images(diffusers, published):
    model, folder = published
    pipe = pipeline(diffusers, folder).to("cpu")
    expected = pixels(model.generate([3, "7"], seed=4, omega=2.5, steps=2))
    options = {"seed": 4, "guidance_scale": 2.5, "num_inference_steps": 2}
    np.testing.assert_array_equal(pixels(pipe([3, "7"], **options).images), expected)
    (floats,) = pipe([3, "7"], output_type="np", return_dict=False, **options)
    assert floats.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(np.rint(floats[..., 0] * 255), expected)
    assert pipe.device == torch.device("cpu")


def test_a_pipeline_stays_with_its_folder_takes_precisions_and_saves_all_of_it(
    diffusers, published, monkeypatch, tmp_path
):
    model, folder = published
    monkeypatch.chdir(folder.parent)
    pipe = pipeline(diffusers, folder.name)
    monkeypatch.chdir(tmp_path)
    expected = pixels(model.generate(3, num_images=4))
    for moved in (pipe.to(torch.float32), pipe.to("cpu", torch.float32), pipe.to(dtype=torch.float32, device="cpu")):
        np.testing.assert_array_equal(pixels(moved(3, num_images=4).images), expected)
    in_bf16 = pixels(model.generate(3, num_images=4, precision="bf16"))
    assert (in_bf16 != expected).any()
    np.testing.assert_array_equal(pixels(pipe.to(torch.bfloat16)(3, num_images=4).images), in_bf16)
    with pytest.raises(pmf.UserError, match=r"dtype torch.float16: give one of: torch.float32, torch.bfloat16"):
        pipe.to(torch.float16)
    pipe.save_pretrained(tmp_path / "again", safe_serialization=True)
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES
    again = pipeline(diffusers, tmp_path / "again").to("cpu")
    np.testing.assert_array_equal(pixels(again(3, num_images=4).images), expected)
