"""Weights and resume points that cannot be used: one line that says which keys there are, or what to do."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pmf.checkpoint.official.layouts import load_official
from pmf.checkpoint.saved_weights import load_weights
from pmf.config.yaml_file import load_config
from pmf.errors import UserError
from pmf.training.run_folder import RunFolder
from tests.launch import ROOT, run_command

DIGITS = ROOT / "configs" / "digits.yaml"
WEIGHTS = {"a": torch.zeros(2), "b.c": torch.ones(3)}


def old(content, path):
    """As torch before 1.6 wrote."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def cut(content, path):
    old(content, path)
    path.write_bytes(path.read_bytes()[:-8])


class MakesFolder:
    """When unpickled, makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


SEVERAL = {"model": WEIGHTS, "ema": {"0.99": WEIGHTS}, "optimizer": {"state": {}}, "step": 3}
MANY = {f"ema_{i}": WEIGHTS for i in range(20)}
# Writer, content, key, and the line after the path.
FILES = {
    "several": (torch.save, SEVERAL, None, "holds 2 sets of weights; choose with --key one of: model, ema.0.99"),
    "several, old": (old, SEVERAL, None, "holds 2 sets of weights; choose with --key one of: model, ema.0.99"),
    "many": (torch.save, MANY, None, "holds 20 sets of weights; choose with --key one of: "),
    "no such key": (
        torch.save,
        SEVERAL,
        "ema",
        "has no weights under 'ema'; choose with --key one of: model, ema.0.99",
    ),
    "key of no weights": (torch.save, SEVERAL, "step", "has no weights under 'step'; choose with --key one of: model"),
    "key of one set": (torch.save, WEIGHTS, "model", "holds one set of weights; leave out --key model"),
    "key where nothing is": (torch.save, {"step": 3}, "model", "has no weights under 'model'; it holds none"),
    "empty": (torch.save, {}, None, "holds nothing; official files map names to tensors"),
    "only numbers": (torch.save, {"step": 3}, None, "'step' is a int; official files map names to tensors"),
    "a number of weights": (old, [WEIGHTS], None, "holds a list; official files map names to tensors"),
    "cut short, old": (cut, WEIGHTS, None, "cannot be loaded (unexpected EOF, expected 8 more bytes"),
    "more than tensors, old": (
        old,
        {**WEIGHTS, "args": argparse.Namespace()},
        None,
        "holds more than tensors (argparse.Namespace); if you trust where it comes from, ",
    ),
    "key of safetensors": (
        save_file,
        WEIGHTS,
        "ema",
        "is no PyTorch file, and --key is for those; leave out --key ema",
    ),
    "other names": (torch.save, WEIGHTS, None, "not the weights of pmf_tiny_2: "),
    "two in one": (
        torch.save,
        {"a": torch.zeros(2), "_orig_mod.a": torch.zeros(2)},
        None,
        "holds two networks; without wrappers such as module. their names are the same",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_used_says_what_is_in_it(name, tmp_path):
    writer, content, key, message = FILES[name]
    path = tmp_path / "weights.ckpt"
    writer(content, path)
    with pytest.raises(UserError) as error:
        load_official(path, load_config(DIGITS), key=key)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_a_line_names_a_dozen_keys_and_counts_the_rest(tmp_path):
    torch.save(MANY, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"ema_11 and 8 more$"):
        load_official(tmp_path / "w.pt", load_config(DIGITS))


def test_an_old_pickle_runs_nothing_unless_told(tmp_path):
    path = tmp_path / "w.ckpt"
    old({"payload": MakesFolder(tmp_path / "made")}, path)
    with pytest.raises(UserError, match=r"holds more than tensors \(posix.mkdir\)"):
        load_official(path, load_config(DIGITS))
    assert not (tmp_path / "made").exists()
    with pytest.raises(UserError, match="'payload' is a NoneType"):
        load_official(path, load_config(DIGITS), allow_pickle=True)
    assert (tmp_path / "made").exists()


def test_weights_without_our_config_ask_for_the_recipe(tmp_path):
    for metadata in (None, {"format": "pt"}, {"config": "{"}, {"config": "[]"}):
        save_file(WEIGHTS, tmp_path / "w.safetensors", metadata)
        with pytest.raises(
            UserError, match=r"carries no config, .*; give the recipe .*: --config NAME \(pmf configs lists them\)"
        ):
            load_weights(tmp_path / "w.safetensors", None)
    for ending in (".pt", ".ckpt", ".bin", ""):
        torch.save(WEIGHTS, tmp_path / f"w{ending}")
        with pytest.raises(UserError, match="is read with its recipe"):
            load_weights(tmp_path / f"w{ending}", None)


@pytest.mark.parametrize("content", ["", "checkpoints/step_00000007", "../../etc", "\0", "checkpoints"])
def test_a_latest_that_names_nothing_points_to_the_run(content, tmp_path):
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    latest = tmp_path / "latest"
    latest.write_text(content)
    message = f"{latest}: names no checkpoint that is there; give the run folder {tmp_path}"
    with pytest.raises(UserError) as error:
        RunFolder(tmp_path).resume_point(str(latest), pytest.fail)
    assert str(error.value) == message
    with pytest.raises(UserError) as error:
        load_weights(latest, None)
    assert str(error.value) == message


def test_a_resume_point_that_is_another_file(tmp_path):
    (tmp_path / "notes").write_text("")
    with pytest.raises(UserError, match=r"--resume .*/notes: is a file of no checkpoint; give auto, never, or a"):
        RunFolder(tmp_path).resume_point(str(tmp_path / "notes"), pytest.fail)


def test_a_key_without_a_recipe(tmp_path):
    torch.save(SEVERAL, tmp_path / "w.pt")
    arguments = ("--checkpoint", str(tmp_path / "w.pt"), "--output", str(tmp_path / "out"), "--num-images", "1")
    result = run_command("eval.py", "sample", *arguments, "--key", "model")
    assert result.returncode == 2
    assert result.stderr == "error: --key model: is for PyTorch files, which are read with --config; leave it out\n", (
        result.stderr
    )
