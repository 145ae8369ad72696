"""Files and folders that hold no weights, or others than those asked for."""

from __future__ import annotations

import pytest

import eval as eval_command
from pmf import convert as convert_command
from pmf.checkpoint.official.pytorch_file import read_pytorch
from pmf.errors import UserError
from tests.bad_input.cases import DIGITS, HTML, HTML_MESSAGE, LFS, LFS_MESSAGE, Case, each, write_file, write_pickle

CASES = {
    "LFS pointer as weights": Case(
        arguments=("{tmp}/w.safetensors",),
        prepare=write_file("w.safetensors", LFS),
        message="{tmp}/w.safetensors: " + LFS_MESSAGE,
    ),
    "web page as weights": Case(
        arguments=("{tmp}/w.safetensors",),
        prepare=write_file("w.safetensors", HTML),
        message="{tmp}/w.safetensors: " + HTML_MESSAGE,
    ),
    "LFS pointer as official weights": Case(
        arguments=("{tmp}/w.pt", "--config", DIGITS),
        prepare=write_file("w.pt", LFS),
        message="{tmp}/w.pt: " + LFS_MESSAGE,
    ),
    "pickle without a recipe": Case(
        arguments=("{tmp}/w.pt",),
        prepare=write_pickle,
        message="{tmp}/w.pt: is not a .safetensors file; an official checkpoint is read with its recipe "
        "(--config NAME; pmf configs lists them) or converted (python -m pmf.convert import)",
    ),
    "pickle": Case(
        arguments=("{tmp}/w.pt", "--config", DIGITS),
        prepare=write_pickle,
        message="{tmp}/w.pt: holds more than tensors (posix.mkdir); if you trust where it comes from, "
        "python -m pmf.convert import --allow-pickle loads it and runs what it asks for",
    ),
    "missing": Case(
        arguments=("{tmp}/nowhere",), message="--checkpoint {tmp}/nowhere: there is no such file or folder"
    ),
    "no weights there": Case(
        arguments=("{tmp}/empty",),
        prepare=lambda folder: (folder / "empty").mkdir(),
        message="{tmp}/empty: is neither a run folder, a checkpoint folder nor a .safetensors file",
    ),
}


@each(CASES)
def test_sample(case, refused, tmp_path):
    output = tmp_path / "images"
    arguments = ("sample", "--output", str(output), "--num-images", "2", "--checkpoint", *case.arguments)
    assert refused(eval_command.main, case, *arguments) == case.message
    assert not output.exists()


def test_a_pickle_runs_only_when_that_is_asked_for(tmp_path):
    """The file of the cases above is armed: with the flag it does what it asks for."""
    write_pickle(tmp_path)
    with pytest.raises(UserError):
        read_pytorch(tmp_path / "w.pt", allow_pickle=True)
    assert (tmp_path / "hacked").exists()


CONVERT = {
    "web page": Case(
        arguments=("{tmp}/w.pt", "--output", "{tmp}/ours.safetensors"),
        prepare=write_file("w.pt", HTML),
        message="{tmp}/w.pt: " + HTML_MESSAGE,
    ),
    "another kind of file": Case(
        arguments=("{tmp}/w.pt", "--output", "{tmp}/ours.pth"),
        prepare=write_pickle,
        message="--output {tmp}/ours.pth: give a file name that ends in .safetensors",
    ),
    "no folder": Case(
        arguments=("{tmp}/w.pt", "--output", "{tmp}/none/ours.safetensors"),
        prepare=write_pickle,
        message="--output {tmp}/none/ours.safetensors: there is no folder {tmp}/none; create it first",
    ),
    "there already": Case(
        arguments=("{tmp}/w.pt", "--output", "{tmp}/here.safetensors"),
        prepare=lambda folder: (write_pickle(folder), (folder / "here.safetensors").touch()),
        message="--output {tmp}/here.safetensors: exists already; remove it or choose another name",
    ),
}


@each(CONVERT)
def test_convert(case, refused, tmp_path):
    arguments = ("import", "--config", DIGITS, "--checkpoint", *case.arguments)
    assert refused(convert_command.main, case, *arguments) == case.message
    assert not list(tmp_path.rglob("*ours*"))


def test_perceptual_weights_that_are_not_there(training_refused, tmp_path):
    case = Case(
        arguments=("perceptual.lpips=true", "perceptual.lpips_weights=nowhere/lpips.safetensors"),
        message="perceptual.lpips_weights: nowhere/lpips.safetensors: there is no such file; download "
        "https://download.pytorch.org/models/vgg16-397923af.pth and "
        "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth and give the place "
        "here, or leave this option out and the run downloads at its start",
    )
    assert training_refused(case) == case.message
    assert not (tmp_path / "run").exists()
