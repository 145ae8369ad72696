"""``pmf.load`` and what it returns: the images of ``eval.py sample``, from every source, and nothing left changed."""

from __future__ import annotations

import importlib
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

import pmf
from pmf.checkpoint.places import list_checkpoints
from pmf.generator.between import classes_between, noise_between


@pytest.fixture(scope="module")
def model(digits_run):
    return pmf.load(digits_run, device="cpu")


def pngs(folder: Path) -> list[bytes]:
    return [Image.open(path).tobytes() for path in sorted(folder.glob("*.png"))]


def test_importing_pmf_imports_no_torch():
    code = "import sys, pmf; print(pmf.__version__, callable(pmf.load), 'torch' in sys.modules, 'yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [pmf.__version__, "True", "False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        _ = pmf.generate


def test_images_are_those_of_the_command_to_the_bit(model, digits_run, monkeypatch, tmp_path):
    sample = ("sample", "--checkpoint", digits_run, "--output", tmp_path / "images", "--num-images", 20)
    options = ("--labels", "3,7,0", "--seed", 5, "--omega", 2, "--interval", 0.2, 0.9, "--num-steps", 2)
    monkeypatch.setattr("sys.argv", ["eval.py", *map(str, (*sample, *options, "--batch-size", 7))])
    importlib.import_module("eval").main()
    given = {"seed": 5, "omega": 2, "interval": (0.2, 0.9), "steps": 2, "batch_size": 7}
    images = model.generate([3, "7", np.int64(0)], num_images=20, **given)
    assert [image.tobytes() for image in images] == pngs(tmp_path / "images")
    assert {(image.mode, image.size) for image in images} == {("L", (8, 8))}
    tensor = model.generate([3, 7, 0], num_images=20, output="tensor", **given)
    assert tensor.shape == (20, *model.image_shape) and tensor.dtype == torch.uint8
    assert [row.numpy().tobytes() for row in tensor] == pngs(tmp_path / "images")
    # Batches begin with the first image that is asked for, so these are whole batches of the others.
    assert torch.equal(model.generate([3, 7, 0], num_images=6, first=14, output="tensor", **given), tensor[14:])
    assert len({image.tobytes() for image in images}) == 20


def test_every_source_of_the_same_weights_makes_the_same_images(model, digits_run, tmp_path):
    newest = list_checkpoints(digits_run)[-1]
    expected = model.generate(3, num_images=3, output="tensor")
    assert (model.average, model.averages) == ("10", ("0.05", "10", "online"))
    assert f"{newest.name}/ema_10.safetensors" in repr(model)
    shutil.copy(newest / "ema_10.safetensors", tmp_path / "w.safetensors")
    for source in (str(digits_run), newest, newest / "ema_10.safetensors", tmp_path / "w.safetensors"):
        found = pmf.load(source, device="cpu")
        assert torch.equal(found.generate(3, num_images=3, output="tensor"), expected)
        assert found.averages == (model.averages if Path(source).is_dir() else ())
    online = pmf.Generator.from_pretrained(newest, ema="online", device="cpu")
    assert online.average == "online"
    assert not torch.equal(online.generate(3, num_images=3, output="tensor"), expected)
    assert pmf.load(newest, ema=0.05).average == "0.05"


def test_an_official_file_is_loaded_with_its_recipe(model, digits_run, tmp_path):
    weights = {f"net.{name}": tensor for name, tensor in model.network.state_dict().items()}
    torch.save(weights, tmp_path / "w.pt")
    loaded = pmf.load(tmp_path / "w.pt", config=digits_run / "config.yaml", device="cpu")
    assert torch.equal(loaded.generate([1, 2], output="tensor"), model.generate([1, 2], output="tensor"))
    assert loaded.class_names == tuple("0123456789")
    with pytest.raises(pmf.UserError, match=r"is read with its recipe \(config=NAME; pmf configs lists them\)"):
        pmf.load(tmp_path / "w.pt")
    with pytest.raises(pmf.UserError, match=r"w.safetensors: is one file of weights; leave out ema=10, or give"):
        shutil.copy(list_checkpoints(digits_run)[-1] / "ema_10.safetensors", tmp_path / "w.safetensors")
        pmf.load(tmp_path / "w.safetensors", ema=10)


def test_nothing_of_the_process_is_changed(digits_run):
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    pmf.load(digits_run, device="cpu").generate(num_images=3)
    assert before == (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1])
    assert not PartialState._shared_state  # no process group was looked for


WRONG = {
    "an option that is none": ({"omgea": 3}, "omgea is no sampling option; there are: omega, interval, num_steps, "),
    "a value that cannot be": ({"omega": 0.5}, "generate: sampling.omega is 0.5: input should be greater than or"),
    "an average": ({"ema": "online"}, "generate: ema is chosen when weights are loaded: pmf.load(..., ema=...)"),
    "steps twice": ({"steps": 1, "num_steps": 1}, "generate: steps and num_steps are the same option; give one"),
    "no images": ({"num_images": 0}, "generate: num_images is 0; ask for at least 1"),
    "no labels": ({"labels": []}, "labels is empty; give at least one class, or leave it out for all"),
    "a class that is not there": ({"labels": [3, 10]}, "label 10: is not in 0 ... 9"),
    "half a class": ({"labels": 1.5}, "label 1.5: give the number of a class, or its name"),
    "a name that is not there": ({"labels": "ten"}, "label 'ten': no class has this name; classes are 0 ... 9, the"),
    "a negative seed": ({"seed": -1}, "generate: seed is -1; give 0 or more"),
    "a negative first": ({"first": -1}, "generate: first is -1; give 0 or more"),
    "half a seed": ({"seed": 1.5}, "generate: seed is 1.5; give a whole number"),
    "half an image": ({"num_images": 2.5}, "generate: num_images is 2.5; give a whole number"),
    "first of a text": ({"first": "3"}, "generate: first is '3'; give a whole number"),
    "half a class of numpy": ({"labels": np.array(1.5)}, "label array(1.5): give the number of a class, or its name"),
    "another form": ({"output": "numpy"}, "output is 'numpy'; give pil or tensor"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_is_refused_in_a_line(model, given, message):
    with pytest.raises(pmf.UserError) as error:
        model.generate(**given)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "no/such/run"}, "no/such/run: there is no such file or folder"),
        ({"source": "$NOWHERE/run"}, "uses $NOWHERE, which is not set"),
        ({"ema": 500}, "has no average '500'; choose one of: 0.05, 10, online"),
        ({"key": "model"}, "key=model: is for PyTorch files, which are read with config=; leave it out"),
        ({"device": "gpu"}, "device gpu: cannot be used ("),
        ({"device": "xpu"}, "device xpu: cannot be used ("),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_line(digits_run, given, message):
    with pytest.raises(pmf.UserError) as error:
        pmf.load(**{"source": digits_run, **given})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_whole_numbers_of_any_library_are_numbers(model):
    expected = model.generate(3, num_images=2, seed=4, output="tensor")
    for of in (np.array, np.int64, torch.tensor):
        given = {"num_images": of(2), "seed": of(4), "first": of(0)}
        assert torch.equal(model.generate(of(3), output="tensor", **given), expected)
        strip = model.interpolate(of(3), seeds=of(4), frames=of(2), output="tensor")
        assert torch.equal(strip, model.interpolate(3, seeds=4, frames=2, output="tensor"))
    several = model.generate([3, 7], output="tensor")
    for labels in (np.array([3, 7]), torch.tensor([3, 7]), iter((3, "7"))):
        assert torch.equal(model.generate(labels, output="tensor"), several)


def test_the_ends_of_an_interpolation_are_the_images_themselves(model):
    options = {"omega": 2.0, "batch_size": 3}
    frames = model.interpolate((3, "8"), seeds=(4, 9), frames=8, output="tensor", **options)
    for frame, label, seed in ((frames[0], 3, 4), (frames[-1], 8, 9)):
        (alone,) = model.generate(label, seed=seed, output="tensor", **options).int()
        # Batches of other sizes sum products in another order, which can move a rounded pixel by one.
        assert (frame.int() - alone).abs().max() <= 1
    assert len({frame.numpy().tobytes() for frame in frames}) == 8
    still = model.interpolate(3, seeds=5, frames=3, output="tensor")
    assert torch.equal(still[0], still[1]) and torch.equal(still[1], still[2])
    assert not model.network.label_embedding._forward_hooks
    for given, message in (
        ({"labels": (1, 2, 3)}, "give one or two labels"),
        ({"labels": 1, "seeds": (1, 2, 3)}, "give one or two labels, and one or two seeds"),
        ({"labels": 1, "frames": 2.5}, "interpolate: frames is 2.5; give a whole number"),
        ({"labels": 1, "seeds": (0, 1.5)}, "interpolate: seed is 1.5; give a whole number"),
        ({"labels": 1, "frames": 1}, "frames is 1; give at least 2, the two ends"),
    ):
        with pytest.raises(pmf.UserError, match=message):
            model.interpolate(**given)


def test_noise_moves_on_a_great_circle_and_the_class_on_a_line(model):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 16, 16, generator=generator)
    b *= a.norm() / b.norm()  # of one length, as long noises nearly are, so that the circle is one
    fractions = torch.linspace(0, 1, 5, dtype=torch.float64)
    points = noise_between(a, b, fractions)
    assert torch.equal(points[0], a) and torch.equal(points[-1], b)
    unit = points.double().flatten(1)
    unit = unit / unit.norm(dim=1, keepdim=True)
    whole = math.acos(float(unit[0] @ unit[-1]))
    angles = torch.arccos((unit[1:4] @ unit[0]).clamp(-1, 1))
    # Points and lengths are rounded to float32, by 6e-8 of them; another 1e-6 would be a mistake.
    torch.testing.assert_close(angles, fractions[1:4] * whole, atol=1e-6, rtol=0)
    table = model.network.label_embedding
    with classes_between(model.network, 3, 8, fractions):
        rows = table(torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(rows[2], (table.weight[3] + table.weight[8]) / 2)
    assert torch.equal(rows[0], table.weight[3]) and torch.equal(rows[-1], table.weight[8])
