"""NaN and infinity never become an image or a number: one line names the tensor, the image or the features."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmf.checkpoint.official.pytorch_file import write_pytorch
from pmf.checkpoint.places import list_checkpoints
from pmf.checkpoint.saved_weights import save_weights
from pmf.commands import run_command
from pmf.config.yaml_file import load_config
from pmf.errors import NotFiniteError, UserError
from pmf.evaluation.frechet import Gaussian
from pmf.evaluation.statistics_file import save_statistics
from pmf.net.sizes import create_network
from pmf.training.trainer import Trainer
from tests.launch import ROOT, TINY
from tests.launch import run_command as start_command

DIGITS = ROOT / "configs" / "digits.yaml"
FRAGILE = "tests.evaluation.networks:Standardised"


@pytest.fixture
def refusal(monkeypatch, capsys) -> Callable[..., str]:
    """Calls a command in this process; returns the one line that it ends with."""

    def call(module: str, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_command(importlib.import_module(module).main)
        assert left.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")

    return call


def write_weights(path: Path, **changes: Callable[[torch.Tensor], object]) -> dict[str, torch.Tensor]:
    """The digits recipe's network with no weight at zero, as one file, after changes to some of its tensors."""
    generator = torch.Generator().manual_seed(0)
    network = create_network("pmf_tiny_2", image_size=8, num_classes=10, channels=1, generator=generator)
    weights = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in network.state_dict().items()
    }
    for name, change in changes.items():
        change(weights[name])
    save_weights(path, weights, load_config(DIGITS))
    return weights


def spoil(value: float) -> Callable[[torch.Tensor], object]:
    return lambda tensor: tensor.view(-1)[1:3].fill_(value)


EVALUATIONS = {
    "sample": ("--num-images", "4"),
    "fid": ("--num-images", "20", "--reference", "digits"),
    "sweep": ("--num-images", "20", "--reference", "digits", "--omega", "1", "2"),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["guidance_tokens", "u_output.linear.bias", "u_blocks.1.mlp.up.weight"])
def test_weights(name, value, refusal, tmp_path):
    path = tmp_path / "w.safetensors"
    weights = write_weights(path, **{name: spoil(value)})
    expected = f"{name} holds 2 of {weights[name].numel()} values that are not finite; such weights make no images"
    for verb, arguments in EVALUATIONS.items():
        line = refusal("eval", verb, "--checkpoint", path, "--output", tmp_path / verb, *arguments)
        assert line.startswith(f"{path}: ")
        assert expected in line
    export = ("export", "--checkpoint", path, "--inference", "--output", tmp_path / "w.pt")
    assert expected in refusal("pmf.convert", *export)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_official_weights(refusal, monkeypatch, tmp_path):
    write_weights(tmp_path / "w.safetensors")
    official = tmp_path / "w.pt"
    export = ["pmf.convert", "export", "--checkpoint", str(tmp_path / "w.safetensors"), "--output", str(official)]
    monkeypatch.setattr("sys.argv", export)
    importlib.import_module("pmf.convert").main()
    tensors = torch.load(official)
    tensors["net.omega_tokens"][0] = math.nan
    tensors["net.y_embedder.embedding_table._flax_embedding.weight"][3, 5] = math.inf
    write_pytorch(official, tensors)
    given = ("--checkpoint", official, "--config", DIGITS, "--output", tmp_path / "out.safetensors")
    convert = refusal("pmf.convert", "import", *given)
    assert convert.startswith(f"{official}: net.")
    assert "values that are not finite, and so do 1 more tensors; such weights make no images" in convert
    assert refusal("eval", "sample", *given, "--num-images", 2) == convert
    assert not (tmp_path / "out.safetensors").exists()


def overflow_of_class(number: int) -> dict[str, Callable[[torch.Tensor], object]]:
    """Finite weights that add up to infinity, for one class alone."""
    return {
        "label_embedding.weight": lambda table: table[number].fill_(3e38),
        "class_tokens": lambda tokens: tokens.view(-1)[: tokens.shape[-1]].fill_(3e38),
    }


@pytest.mark.parametrize("verb", EVALUATIONS)
def test_images_of_finite_weights(verb, refusal, tmp_path):
    path, output = tmp_path / "w.safetensors", tmp_path / "out"
    write_weights(path, **overflow_of_class(3))
    given = ("--checkpoint", path, "--output", output, "--labels", "1,2,3")
    line = refusal("eval", verb, *given, *EVALUATIONS[verb])
    assert line.startswith("image 2 (class 3) of ")
    assert "64 of its 64 values are not finite; choose an older checkpoint or other sampling options" in line
    # Other classes are as good as they were.
    fine = ("sample", "--checkpoint", path, "--output", tmp_path / "fine", "--labels", "1,2", "--num-images", "4")
    assert start_command("eval.py", *map(str, fine)).returncode == 0
    assert len(list((tmp_path / "fine").glob("*.png"))) == 4


def test_an_image_on_the_second_of_two_ranks_ends_both_in_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, **overflow_of_class(3))
    # Batches of two: images 2 and 3 are the second rank's first, and nothing is wrong with the first rank's.
    given = ("--checkpoint", path, "--output", tmp_path / "out", "--num-images", 16, "--batch-size", 2)
    result = start_command("eval.py", "sample", *map(str, given), "--labels", "1,2,4,3", ranks=2)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "image/s" not in line and line]
    assert line.startswith("error: image 3 (class 3) of ")


def write_images(folder: Path, plain: int) -> None:
    """30 images of noise, but for one that has one colour."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(30):
        pixels = random.integers(256, size=(6, 6, 3), dtype=np.uint8)
        Image.fromarray(np.full_like(pixels, 9) if index == plain else pixels).save(folder / f"{index:02d}.png")


def test_features(refusal, tmp_path):
    folder, statistics = tmp_path / "images", tmp_path / "statistics.npz"
    write_images(folder, plain=21)
    expected = f"extractor {FRAGILE}: its features of image 21 are not finite"
    extractor = ("--extractor", FRAGILE)
    assert refusal("eval", "reference", "--data", folder, "--output", statistics, *extractor).startswith(expected)
    assert refusal("eval", "fid", "--images", folder, "--reference", folder, *extractor).startswith(expected)
    assert not statistics.exists()
    # The second of two ranks has it, and both end.
    given = ("fid", "--images", folder, "--reference", folder, *extractor)
    result = start_command("eval.py", *map(str, given), ranks=2)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "image/s" not in line and line]
    assert line.startswith(f"error: {expected}")


@pytest.mark.parametrize("part", ["mean", "covariance"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_statistics(part, value, tmp_path):
    parts = {"mean": torch.zeros(3, dtype=torch.float64), "covariance": torch.eye(3, dtype=torch.float64)}
    parts[part].view(-1)[0] = value
    with pytest.raises(UserError, match="holds values that are not finite"):
        save_statistics(tmp_path / "s.npz", Gaussian(**parts), 10, {})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    """A run of four steps, of which the evaluation and the samples are of the average of 10."""
    evaluation = ("evaluation.every_images=16", "evaluation.num_images=20", "evaluation.reference=digits")
    steps = ("training.max_steps=4", "training.checkpoint_every=2", "training.sample_every=1", "sampling.ema=10")
    output = f"training.output_dir={tmp_path / 'run'}"
    return Trainer(load_config(DIGITS, [*TINY, *evaluation, *steps, output]))


def test_snapshots_of_a_run_are_left_out_and_it_goes_on(trainer, capsys):
    run = trainer.run_folder.path
    step = trainer.train_step

    whole = {}

    def spoilt_for_a_while(batches):
        """The average is infinite after steps 1 and 3, and none of that is saved."""
        stopping = step(batches)
        average = trainer.state.averages.state("10")["guidance_tokens"]
        if trainer.state.progress.step % 2:
            whole["average"] = average.clone()
            average.fill_(math.inf)
        else:
            average.copy_(whole["average"])
        return stopping

    trainer.train_step = spoilt_for_a_while
    trainer.train()
    assert trainer.state.progress.step == 4
    printed = capsys.readouterr().out
    for number in (1, 3):
        where = f"step {number}, 10: guidance_tokens holds"
        assert f"warning: step {number} is not evaluated: {where}" in printed
        assert f"warning: samples/step_{number:08d}.png is left out: {where}" in printed
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [f"step_{n:08d}.json" for n in (2, 4)]
    grids = {path.name for path in (run / "samples").glob("*.png")}
    assert grids == {"step_00000002.png", "step_00000004.png", "final.png", "strip.png"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "fid" in line] == [2, 4]
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("spoilt", ["weights", "average", "moments"])
def test_a_checkpoint_that_is_not_finite_is_not_written(trainer, spoilt):
    trainer.state.progress.step = 1
    trainer.save()
    before = list_checkpoints(trainer.run_folder.path)
    tensor = {
        "weights": trainer.state.network.guidance_tokens.data,
        "average": trainer.state.averages.state("0.05")["guidance_tokens"],
        "moments": next(iter(next(iter(trainer.state.optimizer.state.values())).values())),
    }[spoilt]
    tensor.view(-1)[0] = math.nan
    trainer.state.progress.step = 2
    stem = {"weights": "model: guidance_tokens", "average": "ema_0.05: guidance_tokens", "moments": "optimizer: "}
    with pytest.raises(UserError, match=f"^step 2: {stem[spoilt]}.*not finite; such a checkpoint is not written"):
        trainer.save()
    assert list_checkpoints(trainer.run_folder.path) == before
    if spoilt == "weights":  # nor are images of them, at the end of a run
        with pytest.raises(NotFiniteError):
            trainer.snapshots.maker(dict(trainer.state.network.state_dict()))
