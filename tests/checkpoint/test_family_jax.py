"""JAX checkpoints of iMF and MeanFlow, written by flax, orbax and optax as the official training writes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flax", reason="needs flax and orbax: uv sync --extra jax")

import jax
import optax
from flax import config as flax_config
from flax.training import checkpoints, train_state

from pmf.checkpoint.official.diffusion_names import MEANFLOW_JAX
from pmf.checkpoint.official.exports import export_jax
from pmf.checkpoint.official.layouts import load_official
from pmf.checkpoint.official.names import IMF_JAX
from pmf.errors import UserError
from pmf.net.sizes import SIZES, create_network
from tests.checkpoint.golden_networks import OfficialNetwork
from tests.official import (
    DIT,
    IMF,
    dit_shapes,
    imf_jax_params,
    meanflow_jax_params,
    official_imf_shapes,
    one_number_each,
)
from tests.parity.golden import RELATIVE


class TrainState(train_state.TrainState):
    """Fields of the official states of iMF and MeanFlow (utils/trainstate_util.py, utils/state_util.py)."""

    ema_params: Any


@pytest.fixture(params=["imf", "meanflow"])
def official(request, monkeypatch) -> OfficialNetwork:
    network = OfficialNetwork(request.param)
    monkeypatch.setitem(SIZES, "golden", network.size)
    return network


def tree(official: OfficialNetwork, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return (imf_jax_params if official.name == "imf" else meanflow_jax_params)(weights)


def whole(official: OfficialNetwork) -> dict[str, Any]:
    return tree(official, official.weights)


def scaled(tree: Any, factor: float) -> Any:
    return jax.tree_util.tree_map(lambda leaf: np.asarray(leaf * np.float32(factor)), tree)


def adam() -> optax.GradientTransformation:
    """The optimizer of both official codes, with a schedule."""
    return optax.adamw(optax.constant_schedule(1e-4), weight_decay=0, b2=0.95)


def save_orbax(folder: Path, params: Any, average: Any) -> Path:
    state = TrainState.create(apply_fn=lambda: None, params=params, ema_params=average, tx=adam())
    return Path(checkpoints.save_checkpoint_multiprocess(str(folder), state, 7, keep=3))


def save_msgpack(folder: Path, params: Any, average: Any) -> Path:
    flax_config.update("flax_use_orbax_checkpointing", False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return save_orbax(folder, params, average)
    finally:
        flax_config.update("flax_use_orbax_checkpointing", True)


@pytest.mark.parametrize("save", [save_orbax, save_msgpack])
def test_the_average_and_the_weights_are_found_and_give_the_official_outputs(official, save, tmp_path):
    path = save(tmp_path, scaled(whole(official), 2), whole(official))
    for given in (path, tmp_path):
        saved = load_official(given, official.config())
        assert saved.average == "0.9999"
        assert official.u_error(saved.weights) < RELATIVE
    same = load_official(path, official.config(), "0.9999").weights
    online = load_official(path, official.config(), "online").weights
    for name, tensor in saved.weights.items():
        assert torch.equal(same[name], tensor)
        assert torch.equal(online[name], 2 * tensor)
    assert any(name.startswith("v_") for name in online) == (official.name == "imf")
    with pytest.raises(UserError, match=r"has no average '2000'; choose with --ema one of: 0.9999, online"):
        load_official(path, official.config(), "2000")


def test_an_inference_state_of_imf_holds_the_last_layer_of_the_v_head(official, tmp_path):
    """As the official code makes one with ``eval``; MeanFlow has none to leave out."""
    params = tree(official, {name: t for name, t in official.weights.items() if not name.startswith("v_heads")})
    assert ("v_final_layer" in params["net"]) == (official.name == "imf")
    save_orbax(tmp_path, params, params)
    weights = load_official(tmp_path, official.config()).weights
    assert not any(name.startswith("v_") for name in weights)
    assert official.u_error(weights) < RELATIVE


def test_the_official_evaluation_restores_what_we_export(official, tmp_path):
    """Into a state built as the official evaluation builds it; then back to ours, bit for bit."""
    save_orbax(tmp_path / "theirs", whole(official), whole(official))
    saved = load_official(tmp_path / "theirs", official.config())
    export_jax(tmp_path / "ours", saved, inference=True)
    params = tree(official, {name: t for name, t in official.weights.items() if not name.startswith("v_heads")})
    blank = scaled(params, 0)
    state = TrainState.create(apply_fn=lambda: None, params=blank, ema_params=blank, tx=adam())
    restored = checkpoints.restore_checkpoint(str(tmp_path / "ours"), state)
    for theirs in (restored.params, restored.ema_params):
        assert jax.tree_util.tree_structure(theirs) == jax.tree_util.tree_structure(params)
        assert all(jax.tree_util.tree_leaves(jax.tree_util.tree_map(np.array_equal, theirs, params)))
    for which in ("0.9999", "online"):
        again = load_official(tmp_path / "ours", saved.config, which).weights
        assert all(torch.equal(saved.weights[name], tensor) for name, tensor in again.items())
        assert again.keys() == {name for name in saved.weights if not name.startswith("v_")}


def test_training_weights_there_and_back_are_the_same(official, tmp_path):
    save_orbax(tmp_path / "theirs", whole(official), whole(official))
    saved = load_official(tmp_path / "theirs", official.config())
    export_jax(tmp_path / "ours", saved, inference=False)
    again = load_official(tmp_path / "ours", saved.config).weights
    assert again.keys() == saved.weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.weights.items())


def test_a_tensor_that_is_missing_is_told_by_its_path(official, tmp_path):
    params = whole(official)
    del params["net"]["y_embedder"]
    path = save_orbax(tmp_path, params, params)
    labels = "net/y_embedder/embedding_table/_flax_embedding/embedding"
    with pytest.raises(UserError, match=f"not the weights of golden: {labels} is missing; give the --config") as error:
        load_official(path, official.config())
    assert str(error.value).startswith(f"{path}: ")


def flat(tree: Any) -> dict[str, np.ndarray]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in paths}


@pytest.mark.parametrize("model", [*IMF, *(f"dit_{size}_{patch}" for size, patch in zip(DIT, (2, 4, 8, 2, 4)))])
def test_every_tensor_of_the_jax_networks_has_its_place(model):
    kind, size, patch = model.split("_")
    if kind == "imf":
        shapes, layout, tree_of = official_imf_shapes(model), IMF_JAX, imf_jax_params
    else:
        depth, width, _ = DIT[size]
        shapes, layout, tree_of = dit_shapes(depth, width, int(patch)), MEANFLOW_JAX, meanflow_jax_params
    theirs = flat(tree_of(one_number_each(shapes)))
    with torch.device("meta"):
        own = create_network(model, image_size=32, channels=4, num_classes=1000).state_dict()
    assert {layout.name(name): tuple(layout.store(name, tensor).shape) for name, tensor in own.items()} == {
        name: array.shape for name, array in theirs.items()
    }
    for name, tensor in own.items():
        assert layout.restore(name, torch.from_numpy(theirs[layout.name(name)])).shape == tensor.shape
