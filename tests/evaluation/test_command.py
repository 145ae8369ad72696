"""``eval.py fid`` and ``eval.py reference``: one number whatever the processes, and a record."""

from __future__ import annotations

import hashlib
import importlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pmf.checkpoint.saved_weights import save_weights
from pmf.config.yaml_file import load_config
from pmf.errors import UserError
from pmf.generation.pictures import save_png
from pmf.net.sizes import create_network
from tests.launch import ROOT, run_command

SMALL = "tests.evaluation.networks:create"
SETTINGS = ["--num-images", "100", "--seed", "5", "--omega", "2", "--interval", "0.1", "0.6", "--num-steps", "2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The digits recipe's network with no weight at zero, as one file."""
    generator = torch.Generator().manual_seed(0)
    network = create_network("pmf_tiny_2", image_size=8, num_classes=10, channels=1, generator=generator)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    path = tmp_path_factory.mktemp("run") / "network.safetensors"
    save_weights(path, network.state_dict(), load_config(ROOT / "configs" / "digits.yaml"))
    return path


@pytest.fixture
def call(monkeypatch, tmp_path):
    """A verb of eval.py in this process; returns what it wrote."""

    def run(verb: str, *arguments: object) -> dict:
        output = tmp_path / "result.json"
        named = [] if "--output" in arguments else ["--output", str(output)]
        monkeypatch.setattr("sys.argv", ["eval.py", verb, *map(str, arguments), *named])
        importlib.import_module("eval").main()
        return json.loads(output.read_text()) if named else {}

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 colour images of 12 x 12 pixels."""
    path = tmp_path_factory.mktemp("images")
    images = torch.randint(256, (40, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for index, image in enumerate(images):
        save_png(image, path / f"{index:06d}.png")
    return path


def test_processes_batches_and_files_in_between_change_nothing(weights, call, tmp_path, capsys):
    generated = ["fid", "--checkpoint", str(weights), "--reference", "digits", *SETTINGS]
    one = call(*generated, "--batch-size", "64")
    table = capsys.readouterr().out
    kept = call(*generated, "--batch-size", "64", "--keep-images", tmp_path / "kept")
    read = ["fid", "--images", str(tmp_path / "kept"), "--reference", "digits"]
    again = call(*read)
    calls = [
        [*generated, "--batch-size", "7", "--output", str(tmp_path / "two_generated.json")],
        [*read, "--output", str(tmp_path / "two_read.json")],
    ]
    launched = run_command("tests/eval_worker.py", json.dumps(calls), ranks=2)
    assert launched.returncode == 0, launched.stderr
    two, two_read = (json.loads((tmp_path / f"two_{name}.json").read_text()) for name in ("generated", "read"))
    assert (one["processes"], two["processes"], two_read["processes"]) == (1, 2, 2)
    # The same bytes: only sums have another order. Generated in other batches, a pixel on the edge between two bytes
    # may fall to the other side: measured 2e-6 with these weights.
    for other, tolerance in ((kept, 1e-9), (again, 1e-9), (two_read, 1e-9), (two, 1e-5)):
        assert other["fid"] == pytest.approx(one["fid"], rel=tolerance)
        assert other["inception_score"]["mean"] == pytest.approx(one["inception_score"]["mean"], rel=tolerance)
        assert (other["num_images"], other["extractor"]) == (100, one["extractor"])
    assert len(list((tmp_path / "kept").glob("*.png"))) == 100
    assert again["images"]["sampling"]["seed"] == 5

    assert one["images"] == {
        "checkpoint": str(weights),
        "checkpoint_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "weights": one["images"]["weights"],
        "ema": None,
        "seed": 5,
        "labels": "all",
        "num_steps": 2,
        "sampler": "equal_steps",
        "noise": "ours",
        "precision": "float32",
        "omega": 2.0,
        "interval": [0.1, 0.6],
        "noise_scale": 1.0,
        "rounding": "half to even of (x + 1) / 2 * 255, clipped to 0 ... 255",
    }
    assert one["reference"]["num_images"] == 1797
    assert one["warnings"] == []
    assert "FID of digits-mlp, not Inception" in table
    assert f"{one['fid']:.4f}" in table


def test_the_average_is_recorded_where_one_was_chosen_and_only_there(weights, call, tmp_path):
    """A file is what it is, whatever its name; of a folder the config's average is taken unless another is named."""
    tensors = load_file(weights)
    torch.save(tensors, tmp_path / "weights")  # neither ending nor config
    digits = load_config(ROOT / "configs" / "digits.yaml")
    (tmp_path / "copied").mkdir()
    for name in ("model", "ema_10", "ema_20"):
        save_weights(tmp_path / "copied" / f"{name}.safetensors", tensors, digits)
    few = ("--reference", "digits", "--num-images", "10", "--num-steps", "1")
    recipe = ("--config", ROOT / "configs" / "digits.yaml")
    assert call("fid", "--checkpoint", tmp_path / "weights", *recipe, *few)["images"]["ema"] is None
    for average in ("10", "20", "online"):
        record = call("fid", "--checkpoint", tmp_path / "copied", "--ema", average, *few)
        assert record["images"]["ema"] == average


def test_statistics_files_stand_for_the_images_they_were_made_of(folder, call, tmp_path, capsys):
    statistics = tmp_path / "reference.npz"
    call("reference", "--data", folder, "--extractor", SMALL, "--output", statistics)
    assert "40 images, 16 features of tests.evaluation.networks:create" in capsys.readouterr().out
    of_file = call("fid", "--images", folder, "--reference", statistics, "--extractor", SMALL, "--num-images", "30")
    of_images = call("fid", "--images", folder, "--reference", folder, "--extractor", SMALL, "--num-images", "30")
    assert of_file["fid"] == pytest.approx(of_images["fid"], rel=1e-9)
    assert of_file["reference"]["sha256"] == hashlib.sha256(statistics.read_bytes()).hexdigest()
    assert of_file["reference"]["protocol"]["preparation"] == "as they are"
    itself = call("fid", "--images", folder, "--reference", folder, "--extractor", SMALL, "--precision-recall")
    assert abs(itself["fid"]) < 1e-3
    assert itself["precision_recall"] == {"precision": 1.0, "recall": 1.0}


def test_data_sets_are_cropped_as_for_training(call, tmp_path):
    classes = tmp_path / "set"
    generator = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        (classes / name).mkdir(parents=True)
        for index in range(10):
            image = torch.randint(256, (3, 20, 30), generator=generator, dtype=torch.uint8)
            save_png(image, classes / name / f"{index}.png")
    statistics = tmp_path / "set.npz"
    call("reference", "--data", classes, "--image-size", "12", "--extractor", SMALL, "--output", statistics)
    with np.load(statistics) as saved:
        assert int(saved["n"]) == 20
        protocol = json.loads(str(saved["protocol"]))
    assert (protocol["image_shape"], protocol["preparation"]) == ([3, 12, 12], "ADM centre crop")
    config = tmp_path / "set.yaml"
    config.write_text(
        f"data: {{kind: imagefolder, path: {classes}, image_size: 12, num_classes: 2}}\ntraining: {{max_steps: 1}}\n"
    )
    by_config = tmp_path / "by_config.npz"
    call("reference", "--config", config, "--extractor", SMALL, "--output", by_config)
    with np.load(statistics) as one, np.load(by_config) as other:
        np.testing.assert_array_equal(one["sigma"], other["sigma"])


def test_fewer_images_than_dimensions_are_warned_of(folder, call, capsys):
    record = call("fid", "--images", folder, "--reference", folder, "--extractor", SMALL, "--num-images", "12")
    (warning,) = [line for line in record["warnings"] if line.startswith("the measured set")]
    assert warning.startswith("the measured set has 12 images and the features 16 dimensions")
    assert f"warning: {warning}" in capsys.readouterr().err


def test_hidden_names_and_folders_are_no_samples(weights, call, tmp_path):
    output = tmp_path / "samples"
    output.mkdir()
    (output / ".DS_Store").touch()  # a folder that was looked at is still empty
    sample = ("sample", "--checkpoint", weights, "--num-images", "12", "--num-steps", "1", "--output", output)
    call(*sample)
    assert len(list(output.glob("*.png"))) == 12
    whole = (output / "000003.png").read_bytes()
    (output / "000003.png").unlink()
    (output / "000003.png").symlink_to("/nonexistent")
    (output / "000004.png").rename(output / "._000004.png")
    call(*sample)
    assert (output / "000003.png").read_bytes() == whole
    assert (output / "000004.png").is_file()
    save_png(torch.zeros(1, 8, 8, dtype=torch.uint8), output / "0.png")  # sorted before the samples
    keep = ("--checkpoint", weights, "--num-images", "12", "--num-steps", "1", "--keep-images", output)
    with pytest.raises(UserError, match="holds 13 images and not just the 12 that were generated; remove the others"):
        call("fid", *keep, "--reference", "digits")
