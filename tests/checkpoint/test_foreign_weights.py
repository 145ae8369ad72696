"""Weights that others wrote: wrapped, nested, of any ending, old, without our metadata; and paths into a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pmf.checkpoint.official.families import network_without_values, rotations
from pmf.checkpoint.official.layouts import load_official
from pmf.checkpoint.official.names import official_name
from pmf.checkpoint.saved_weights import load_weights
from pmf.checkpoint.storage import Checkpoint, save_checkpoint
from pmf.config.sections import as_plain
from pmf.config.yaml_file import load_config
from pmf.net.sizes import create_network
from pmf.training.run_folder import RunFolder
from tests.launch import ROOT, run_command

DIGITS = ROOT / "configs" / "digits.yaml"


def network_weights(seed: int) -> dict[str, torch.Tensor]:
    """Of the digits recipe's network, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    network = create_network("pmf_tiny_2", image_size=8, num_classes=10, channels=1)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def config():
    return load_config(DIGITS)


@pytest.fixture(scope="module")
def ours():
    return network_weights(0)


def official(weights):
    """Under the official names, which begin with ``net.``"""
    return {f"net.{official_name(name)}": tensor for name, tensor in weights.items()}


def bare(weights):
    """Under the official names without their wrapper."""
    return {name.removeprefix("net."): tensor for name, tensor in official(weights).items()}


def without_v_head(weights):
    return {name: tensor for name, tensor in weights.items() if not name.startswith("v_")}


def inside(part):
    """A wrapper around modules deep in the network."""
    return lambda name: name.replace("blocks.", f"blocks.{part}.").replace(".norm", f".{part}.norm")


NAMES = {"ours": dict, "official": official, "official network": bare, "without the v head": without_v_head}
WRAPPED = {
    "nothing": str,
    "DDP": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "the other way round": lambda name: f"_orig_mod.module.{name}",
    "twice": lambda name: f"module.module.{name}",
    "Lightning": lambda name: f"model.{name}",
    "somebody's own": lambda name: f"net.{name}",
    "compiled parts": inside("_orig_mod"),
    "sharded parts": lambda name: f"_fsdp_wrapped_module.{inside('_fsdp_wrapped_module._orig_mod')(name)}",
    "recomputed parts": lambda name: f"module.{inside('_checkpoint_wrapped_module')(name)}",
}


def require_equal(loaded, weights):
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("names", NAMES)
def test_wrappers_around_modules_are_taken_off(names, wrapper, config, ours, tmp_path):
    weights = NAMES[names](ours)
    torch.save({WRAPPED[wrapper](name): tensor for name, tensor in weights.items()}, tmp_path / "w.pt")
    kept = without_v_head(ours) if names == "without the v head" else ours
    require_equal(load_official(tmp_path / "w.pt", config).weights, kept)


def test_an_average_of_torch_with_its_count_and_the_official_rotations(config, ours, tmp_path):
    averaged = {f"module.{name}": tensor for name, tensor in official(ours).items()}
    averaged |= {"n_averaged": torch.tensor(7), "module.net.rope_freqs": rotations(network_without_values(config))}
    torch.save(averaged, tmp_path / "w.pt")
    require_equal(load_official(tmp_path / "w.pt", config).weights, ours)


WRITERS = {
    "zip": torch.save,
    "before torch 1.6": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "safetensors": save_file,
    "safetensors of others": lambda content, path: save_file(content, path, {"format": "pt"}),
    "safetensors with another config": lambda content, path: save_file(content, path, {"config": "unet.json"}),
}


@pytest.mark.parametrize("ending", [".pt", ".ckpt", ".bin", ".safetensors", ".msgpack", ""])
@pytest.mark.parametrize("writer", WRITERS)
def test_files_are_known_by_their_content(writer, ending, config, ours, tmp_path):
    path = tmp_path / f"weights{ending}"
    WRITERS[writer](ours, path)
    loaded = load_official(path, config)
    require_equal(loaded.weights, ours)
    assert loaded.source == f"weights{ending} {loaded.sha256[:16]}"


def test_our_own_file_keeps_its_config_under_another_name(config, ours, tmp_path):
    for name in ("w.bin", "w", "latest", "state.json"):
        save_file(ours, tmp_path / name, {"config": json.dumps(as_plain(config))})
        loaded = load_weights(tmp_path / name, None)
        require_equal(loaded.weights, ours)
        assert loaded.config == config


NESTED = {
    "flat beside numbers": (lambda a, b: {"model": a, "ema": b, "step": 3}, {"model": 0, "ema": 1}),
    "averages": (
        lambda a, b: {"model": a, "model_ema1": b, "model_ema2": a, "epoch": 1, "args": None},
        {"model": 0, "model_ema1": 1, "model_ema2": 0},
    ),
    "deep": (
        lambda a, b: {
            "state": {"net": {"model": a}, "ema": {"0.9999": b}},
            "optimizer": {"state": {0: {"exp_avg": 1}}},
        },
        {"state.net.model": 0, "state.ema.0.9999": 1},
    ),
    "wrapped": (
        lambda a, b: {"ema": {f"module.{name}": t for name, t in a.items()}, "model": b},
        {"ema": 0, "model": 1},
    ),
}


@pytest.mark.parametrize("writer", ["zip", "before torch 1.6"])
@pytest.mark.parametrize("nesting", NESTED)
def test_one_of_several_sets_of_weights_is_taken_when_told(nesting, writer, config, ours, tmp_path):
    nest, keys = NESTED[nesting]
    both = (ours, network_weights(1))
    path = tmp_path / "w.pt"
    WRITERS[writer](nest(*both), path)
    for key, which in keys.items():
        loaded = load_official(path, config, key=key)
        require_equal(loaded.weights, both[which])
        assert loaded.source == f"w.pt {key} {loaded.sha256[:16]}"


@pytest.mark.parametrize("nest", [lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"a": {"b": w}, "loss": [0.1]}])
def test_the_only_set_of_weights_needs_no_key(nest, config, ours, tmp_path):
    torch.save(nest(ours), tmp_path / "w.ckpt")
    require_equal(load_official(tmp_path / "w.ckpt", config).weights, ours)


def test_the_commands_take_the_key(ours, tmp_path):
    torch.save({"model": ours, "ema": network_weights(1), "step": 3}, tmp_path / "w.ckpt")
    for key in ("model", "ema"):
        source = ("--checkpoint", str(tmp_path / "w.ckpt"), "--config", str(DIGITS), "--key", key)
        converted = str(tmp_path / f"{key}.safetensors")
        for command in (
            ("pmf.convert", "import", *source, "--output", converted),
            ("eval.py", "sample", *source, "--output", str(tmp_path / key), "--num-images", "1"),
        ):
            result = run_command(*command)
            assert result.returncode == 0, result.stderr
    require_equal(load_weights(tmp_path / "ema.safetensors", None).weights, network_weights(1))
    images = [(tmp_path / key / "000000.png").read_bytes() for key in ("model", "ema")]
    assert images[0] != images[1]


@pytest.fixture
def run(config, ours, tmp_path):
    """A run folder with checkpoints of steps 1, 2 and 3, of which ``latest`` names the second."""
    for step in (1, 2, 3):
        weights = {name: tensor + step for name, tensor in ours.items()}
        state = {"step": step, "config": as_plain(config)}
        checkpoint = Checkpoint(tensors={"model": weights, "ema_10": weights}, state=state)
        save_checkpoint(tmp_path / "run", checkpoint, keep=3)
    (tmp_path / "run" / "latest").write_text("checkpoints/step_00000002\n")
    return tmp_path / "run"


PLACES = {
    "": 3,
    "latest": 2,
    "checkpoints": 3,
    "checkpoints/step_00000001": 1,
    "checkpoints/step_00000001/": 1,
    "checkpoints/step_00000001/state.json": 1,
    "checkpoints/step_00000001/manifest.json": 1,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_path_into_a_run_folder_means_something(place, run, ours, monkeypatch):
    step = PLACES[place]
    monkeypatch.chdir(run)
    for path in (f"{run}/{place}", place or "."):
        found = RunFolder(Path("other")).resume_point(path, pytest.fail)
        assert found is not None and found.resolve() == run / "checkpoints" / f"step_{step:08d}"
        loaded = load_weights(Path(path), "online")
        assert torch.equal(loaded.weights["guidance_tokens"], ours["guidance_tokens"] + step)


@pytest.mark.parametrize("file", ["model", "ema_10"])
def test_a_run_goes_on_from_the_checkpoint_of_a_file(file, run):
    checkpoint = run / "checkpoints" / "step_00000002"
    assert RunFolder(Path("other")).resume_point(f"{checkpoint}/{file}.safetensors", pytest.fail) == checkpoint


def test_the_folder_of_checkpoints_from_within(run, monkeypatch):
    monkeypatch.chdir(run / "checkpoints")
    found = RunFolder(Path("other")).resume_point(".", pytest.fail)
    assert found is not None and found.resolve() == run / "checkpoints" / "step_00000003"
