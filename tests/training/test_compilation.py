"""``training.compile``: what auto decides for a machine, a network and a loss, and that the others are obeyed."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch

from pmf.config.network import network_of
from pmf.config.sections import as_plain
from pmf.config.yaml_file import config_from_plain, load_config
from pmf.errors import UserError
from pmf.flow.objective import create_objective
from pmf.training.compilation import Compilation, decide_compilation, failures_in_one_line
from pmf.training.preflight import require_compiler
from tests.launch import ROOT, TINY

THERE = "training.compile is auto; CUDA, Triton and a C compiler are there"
NO_CUDA = "training.compile is auto, and this is not CUDA"
NO_TRITON = "training.compile is auto, and compilation needs Triton on a GPU, which is not installed; install triton"
NO_COMPILER = (
    "training.compile is auto, and compilation needs a compiler, and no-compiler is not on the PATH; install one, name "
    "it in CC"
)
JVP = "training.compile is auto, and objective.derivative is jvp, which cannot pass compiled blocks; use dual or auto"
NO_TANGENTS = "training.compile is auto, and du/dt of PixelTransformer, which carries no tangents, is taken by jvp"


@pytest.fixture
def machine(monkeypatch):
    """What this machine is said to have."""

    def say(*, cuda: bool = True, triton: bool = True, compiler: str = "cc") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
        monkeypatch.setattr(shutil, "which", lambda name: name if name == "cc" else None)
        monkeypatch.setenv("CC", compiler)
        monkeypatch.setenv("CXX", compiler)

    return say


def decision(*changes: str, tangents: bool = True) -> Compilation:
    config = load_config(ROOT / "configs" / "digits.yaml", [*TINY, *changes])
    with torch.device("meta"):
        network = network_of(config)
    network.carries_tangents = tangents
    return decide_compilation(config, network, create_objective(config.objective, num_classes=10))


@pytest.mark.parametrize(
    ("circumstances", "changes", "expected"),
    [
        ({}, (), Compilation(True, THERE)),
        ({}, ("training.compile=auto",), Compilation(True, THERE)),
        ({"cuda": False}, (), Compilation(False, NO_CUDA)),
        ({"triton": False}, (), Compilation(False, NO_TRITON)),
        ({"compiler": "no-compiler"}, (), Compilation(False, NO_COMPILER)),
        ({}, ("objective.derivative=jvp",), Compilation(False, JVP)),
        ({}, ("training.compile=false",), Compilation(False, "training.compile is false")),
        ({"cuda": False}, ("training.compile=true",), Compilation(True, "training.compile is true")),
    ],
)
def test_what_is_compiled(circumstances, changes, expected, machine):
    machine(**circumstances)
    assert decision(*changes) == expected


def test_a_network_without_tangents_is_trained_eagerly_under_auto(machine):
    machine()
    assert decision(tangents=False) == Compilation(False, NO_TANGENTS)


def test_a_step_that_cannot_be_compiled_is_told_in_one_line():
    def body(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x

    told = r"^the training step cannot be compiled \(.+\); set training.compile to false$"
    with pytest.raises(UserError, match=told), failures_in_one_line():
        torch.compile(body, fullgraph=True, backend="eager")(torch.ones(2))
    with pytest.raises(ValueError, match="of its own"), failures_in_one_line():
        raise ValueError("of its own")


@pytest.mark.parametrize("asked", ["auto", "false"])
def test_only_true_demands_a_compiler(asked, machine):
    machine(compiler="no-compiler")
    require_compiler(load_config(ROOT / "configs" / "digits.yaml", [*TINY, f"training.compile={asked}"]).training)
    with pytest.raises(UserError, match="which needs a compiler"):
        require_compiler(load_config(ROOT / "configs" / "digits.yaml", [*TINY, "training.compile=true"]).training)


@pytest.mark.parametrize(("recorded", "read"), [(True, True), (False, False), ("auto", "auto")])
def test_records_of_older_runs_are_read(recorded, read):
    config = load_config(ROOT / "configs" / "digits.yaml", TINY)
    values = as_plain(config)
    assert values["training"]["compile"] == "auto"
    values["training"]["compile"] = recorded
    assert config_from_plain(values, "state.json").training.compile is read


def test_another_word_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training:\n  max_steps: 1\n  compile: yes\n")
    with pytest.raises(
        UserError, match=r"run.yaml:3: training.compile is 'yes': input should be 'auto', True or False"
    ):
        load_config(path)
