"""Files and folders that hold no weights, or others than those asked for."""

from __future__ import annotations

import pytest

import eval as eval_command
from pmf.convert.pytorch_file import read_pytorch
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
        "(eval.py sample --config configs/NAME.yaml) or converted (python -m pmf.convert import)",
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
    "average that is not there": Case(
        arguments=("{run}", "--ema", "77"),
        message="{run}/checkpoints/step_00000001: has no average '77'; choose one of: 0.05, 10, online",
    ),
    "label out of range": Case(arguments=("{run}", "--labels", "3,10"), message="--labels 3,10: 10 is not in 0 ... 9"),
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
