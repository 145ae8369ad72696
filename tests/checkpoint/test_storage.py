"""Checkpoints are complete or absent."""

from __future__ import annotations

import json

import pytest
import torch

from pmf.checkpoint.integrity import find_damage, find_resumable
from pmf.checkpoint.places import list_checkpoints
from pmf.checkpoint.saved_weights import load_strictly, load_weights
from pmf.checkpoint.storage import Checkpoint, save_checkpoint
from pmf.config.sections import as_plain
from pmf.config.yaml_file import config_from_plain
from pmf.errors import UserError
from pmf.files import complete_or_absent
from pmf.net.base import BaseNetwork
from tests.checkpoint.loading import load_checkpoint

CONFIG = config_from_plain(
    {
        "data": {"kind": "digits", "image_size": 8, "channels": 1, "num_classes": 10},
        "model": {"name": "pmf_tiny_2"},
        "training": {"max_steps": 3},
        "ema": {"half_lives_kimg": [10]},
        "sampling": {"ema": 10},
    },
    "test",
)


def save(run, step, keep=3):
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model": {"a.weight": torch.randn(3, 4, generator=generator), "v_b": torch.randn(5, generator=generator)},
        "ema_10": {"a.weight": torch.randn(4, 3, generator=generator).T, "v_b": torch.zeros(5)},
    }
    checkpoint = Checkpoint(tensors=tensors, state={"step": step, "config": as_plain(CONFIG), "x": [1, 0.1]})
    return save_checkpoint(run, checkpoint, keep=keep), checkpoint


def test_what_is_loaded_is_what_was_saved(tmp_path):
    folder, saved = save(tmp_path, 7)
    loaded = load_checkpoint(folder)
    assert folder.name == "step_00000007"
    assert loaded.state == saved.state
    for stem, tensors in saved.tensors.items():
        assert all(torch.equal(tensors[name], loaded.tensors[stem][name]) for name in tensors)
    assert (tmp_path / "latest").read_text() == "checkpoints/step_00000007\n"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest) == ["ema_10.safetensors", "model.safetensors", "state.json"]
    assert all(entry["bytes"] == (folder / name).stat().st_size for name, entry in manifest.items())


def test_only_the_newest_are_kept_and_saving_a_step_again_replaces_it(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000003", "step_00000004"]
    save(tmp_path, 4, keep=2)
    assert find_damage(list_checkpoints(tmp_path)[-1]) is None


DAMAGE = {
    "truncated": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-9]
    ),
    "altered": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-1] + b"\x00"
    ),
    "missing": lambda folder: (folder / "ema_10.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "torn manifest": lambda folder: (folder / "manifest.json").write_text("{"),
    "altered state": lambda folder: (folder / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    older, _ = save(tmp_path, 1)
    newer, _ = save(tmp_path, 2)
    DAMAGE[damage](newer)
    with pytest.raises(UserError, match="use an older checkpoint"):
        load_checkpoint(newer)
    warnings = []
    assert find_resumable(tmp_path, warnings.append) == older
    assert len(warnings) == 1
    assert newer.name in warnings[0]
    DAMAGE[damage](older)
    with pytest.raises(UserError, match="none of its 2 checkpoints is intact"):
        find_resumable(tmp_path, warnings.append)


def test_an_unfinished_checkpoint_is_invisible(tmp_path):
    save(tmp_path, 1)
    unfinished = tmp_path / "checkpoints" / ".incomplete_step_00000002"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000001"]
    save(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000001", "step_00000002"]
    assert not unfinished.exists()


def test_a_file_that_was_not_written_to_its_end_is_absent(tmp_path):
    (tmp_path / "kept").write_text("old")
    for name in ("kept", "new"):
        with pytest.raises(KeyboardInterrupt), complete_or_absent(tmp_path / name) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


def test_weights_load_from_a_run_a_checkpoint_and_a_file(tmp_path):
    folder, saved = save(tmp_path, 3)
    for path, which in ((tmp_path, None), (folder, "10"), (folder / "ema_10.safetensors", None)):
        loaded = load_weights(path, which)
        assert torch.equal(loaded.weights["a.weight"], saved.tensors["ema_10"]["a.weight"])
        assert loaded.config == CONFIG
        assert loaded.source.startswith("step_00000003/ema_10.safetensors ")
    assert torch.equal(load_weights(tmp_path, "online").weights["v_b"], saved.tensors["model"]["v_b"])


def test_weights_of_another_network_are_refused_by_name():
    module = torch.nn.Linear(4, 3)
    with pytest.raises(UserError, match=r"here: weights of another network: bias is missing; weight is \(2, 4\) there"):
        load_strictly(module, {"weight": torch.zeros(2, 4)}, "here")
    with pytest.raises(UserError, match="extra is unknown here"):
        load_strictly(module, {**module.state_dict(), "extra": torch.zeros(1)}, "here")


def test_weights_that_only_training_uses_are_left_over_for_inference():
    class Network(BaseNetwork):
        training_only = ("second.",)

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(2, 2)

    network, spare = Network(), {"second.weight": torch.zeros(1)}
    load_strictly(network, {**network.state_dict(), **spare}, "here")
    with pytest.raises(UserError, match=r"here: weights of another network: second.weight is unknown here"):
        load_strictly(network.first, {**network.first.state_dict(), **spare}, "here")
