"""Checkpoints written by flax and orbax as the official JAX training writes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmf.net.interface import Conditions

pytest.importorskip("flax", reason="needs flax and orbax: uv sync --extra jax")

import jax
import optax
from flax import config as flax_config
from flax.training import checkpoints, train_state

from pmf.checkpoint.official.exports import export_jax
from pmf.checkpoint.official.layouts import load_official
from pmf.errors import UserError
from pmf.flow.parameterization import ImagePrediction
from pmf.generation.images import inference_network
from pmf.net.sizes import SIZES
from tests.official import config_of, golden_size, jax_params, without_v_head
from tests.parity.golden import RELATIVE, Golden, relative_error


class TrainState(train_state.TrainState):
    """Fields of the official state (utils/trainstate_util.py)."""

    ema_params: dict[float, Any]


@pytest.fixture
def golden(monkeypatch) -> Golden:
    """Official weights and outputs of a tiny network, which has a row in our table for the test."""
    golden = Golden("A1_pmfdit_forward")
    monkeypatch.setitem(SIZES, "golden", golden_size(golden.meta["net"]))
    return golden


def config(golden: Golden, **sampling: Any):
    return config_of("golden", golden.meta["net"]["input_size"], golden.meta["net"]["num_classes"], **sampling)


def scaled(tree: Any, factor: float) -> Any:
    return jax.tree_util.tree_map(lambda leaf: np.asarray(leaf * np.float32(factor)), tree)


def save_full(folder: Path, params: Any, *, on_devices: bool = False) -> Path:
    """Step 7 of a training run: weights, three averages, the optimizer's state."""
    if on_devices:  # branch hsdp writes the devices' arrays, branch main copies them to the host first
        params = jax.tree_util.tree_map(jax.numpy.asarray, params)
    state = TrainState.create(
        apply_fn=lambda: None,
        params=params,
        ema_params={500: scaled(params, 0.5), 1000: scaled(params, 2), 2000: params},
        tx=optax.contrib.muon(learning_rate=1e-3, adam_b2=0.95),
    )
    return Path(checkpoints.save_checkpoint_multiprocess(str(folder), state, 7, keep=3))


def save_inference(folder: Path, params: Any) -> Path:
    """No v head, one average, no optimizer."""
    state = TrainState.create(
        apply_fn=lambda: None, params=params, ema_params={1000: params}, tx=optax.sgd(learning_rate=0.0)
    )
    return Path(checkpoints.save_checkpoint_multiprocess(str(folder), state, 400_000, keep=3))


def save_msgpack(folder: Path, params: Any) -> Path:
    """The older file format, which flax still writes when told not to use orbax."""
    flax_config.update("flax_use_orbax_checkpointing", False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return save_full(folder, params)
    finally:
        flax_config.update("flax_use_orbax_checkpointing", True)


def u_head(golden: Golden, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    network = inference_network(config(golden), weights, torch.device("cpu"), where="test")
    z, t = golden.image("in/x"), golden["in/t"]
    conditions = Conditions(
        t=t,
        h=golden["in/h"],
        omega=golden["in/w"],
        t_min=golden["in/t_min"],
        t_max=golden["in/t_max"],
        labels=golden["in/y"].long(),
    )
    with torch.no_grad():
        return ImagePrediction().to_velocity(network(z, conditions, heads="u").u, z, t)


@pytest.mark.parametrize("save", [save_full, save_inference, save_msgpack])
def test_outputs_are_those_of_the_official_network(tmp_path, golden, save):
    official = golden.group("params/")
    params = jax_params(without_v_head(official) if save is save_inference else official)
    save(tmp_path, params)
    which = "1000" if save is save_inference else "2000"
    weights = load_official(tmp_path, config(golden), which).weights
    assert relative_error(u_head(golden, weights), golden.image("out/u")) < RELATIVE
    assert any(name.startswith("v_") for name in weights) == (save is not save_inference)


@pytest.mark.parametrize("save", [save_full, save_msgpack])
def test_each_set_of_weights_is_found_by_its_name(tmp_path, golden, save):
    save(tmp_path, jax_params(golden.group("params/")))
    recipe = config(golden, ema=500)
    tokens = golden["params/omega_tokens"]
    for which, factor in (("online", 1), ("500", 0.5), ("1000", 2), ("2000", 1), (None, 0.5)):
        assert torch.equal(load_official(tmp_path, recipe, which).weights["guidance_tokens"], factor * tokens)
    with pytest.raises(UserError, match=r"has no average '100'; choose with --ema one of: .*online"):
        load_official(tmp_path, recipe, "100")


def test_arrays_of_devices_are_read_on_the_host(tmp_path, golden):
    path = save_full(tmp_path, jax_params(golden.group("params/")), on_devices=True)
    weights = load_official(path, config(golden), "online").weights
    assert torch.equal(weights["guidance_tokens"], golden["params/omega_tokens"])


def test_the_newest_checkpoint_of_a_folder_is_taken(tmp_path, golden):
    params = jax_params(without_v_head(golden.group("params/")))
    save_full(tmp_path, params)
    save_inference(tmp_path, scaled(params, 3))
    weights = load_official(tmp_path, config(golden), "1000").weights
    assert torch.equal(weights["guidance_tokens"], 3 * golden["params/omega_tokens"])


def test_the_official_evaluation_restores_what_we_export(tmp_path, golden):
    """Into a state built as official train.py builds it for evaluation; then back to ours, bit for bit."""
    params = jax_params(without_v_head(golden.group("params/")))
    save_inference(tmp_path / "theirs", params)
    saved = load_official(tmp_path / "theirs", config(golden, ema=1000))
    export_jax(tmp_path / "ours", saved, inference=True)
    blank = scaled(params, 0)
    state = TrainState.create(
        apply_fn=lambda: None, params=blank, ema_params={1000: blank}, tx=optax.sgd(learning_rate=0.0)
    )
    restored = checkpoints.restore_checkpoint(str(tmp_path / "ours"), state)
    for theirs in (restored.params, restored.ema_params[1000]):
        assert jax.tree_util.tree_structure(theirs) == jax.tree_util.tree_structure(params)
        assert all(jax.tree_util.tree_leaves(jax.tree_util.tree_map(np.array_equal, theirs, params)))
    again = load_official(tmp_path / "ours", saved.config).weights
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.weights.items())


def change_tree(change):
    def apply(folder: Path, golden: Golden) -> Path:
        params = jax_params(golden.group("params/"))
        change(params["net"])
        return save_full(folder, params)

    return apply


def cut_data(folder: Path, golden: Golden) -> Path:
    path = save_full(folder, jax_params(golden.group("params/")))
    for file in path.rglob("d/*"):  # some of them are copies that are not read
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return path


def cut_msgpack(folder: Path, golden: Golden) -> Path:
    path = save_msgpack(folder, jax_params(golden.group("params/")))
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def spoil_metadata(folder: Path, golden: Golden) -> Path:
    path = save_full(folder, jax_params(golden.group("params/")))
    (path / "_METADATA").write_text("<html>")
    return path


def write_html(folder: Path, _golden: Golden) -> Path:
    path = folder / "checkpoint_7"
    path.write_text("<!DOCTYPE html><html>log in</html>")
    return path


def save_other_tree(folder: Path, _golden: Golden) -> Path:
    return Path(checkpoints.save_checkpoint_multiprocess(str(folder), {"weights": np.zeros(3)}, 7))


FAULTS = {
    "missing": (change_tree(lambda net: net.pop("pos_embed")), "net/pos_embed is missing; give the --config"),
    "shape": (
        change_tree(lambda net: net["shared_blocks_0"]["attn"]["q_norm"].update(kernel=np.ones(3, np.float32))),
        r"net/shared_blocks_0/attn/q_norm/kernel is \(3,\) there and \(16,\) here",
    ),
    "extra": (change_tree(lambda net: net.update(extra=np.ones(3, np.float32))), "net/extra is unknown here"),
    "cut data": (cut_data, "cannot be read as a JAX checkpoint|its metadata cannot be read"),
    "cut msgpack": (cut_msgpack, "cannot be read as a JAX checkpoint"),
    "metadata": (spoil_metadata, "its metadata cannot be read"),
    "html": (write_html, "this is a web page"),
    "other tree": (save_other_tree, "has neither params nor ema_params"),
}


# After a failed read orbax's threads still report to the event loop that it closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_official_checkpoint_of_the_model_is_one_line(tmp_path, golden, fault):
    spoil, message = FAULTS[fault]
    path = spoil(tmp_path, golden)
    with pytest.raises(UserError, match=message) as error:
        load_official(path, config(golden), "2000")
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
