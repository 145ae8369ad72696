"""What a run that goes on is told of its config: what differs from the checkpoint's, and nothing that is only new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pmf.checkpoint.storage import Checkpoint
from pmf.config.sections import as_plain
from pmf.training.run_folder import RunFolder
from tests.runs import tiny_config


def changes(recorded: dict[str, Any], *overrides: str) -> list[str]:
    checkpoint = Checkpoint(tensors={}, state={"config": recorded})
    return list(RunFolder(Path("run")).changes(checkpoint, tiny_config(Path("run"), *overrides)))


def test_a_key_that_an_old_checkpoint_lacks_had_its_default_value():
    recorded = as_plain(tiny_config(Path("run")))
    del recorded["objective"]["name"], recorded["training"]["keep_checkpoints"], recorded["tracking"]
    assert changes(recorded) == []
    assert changes(recorded, "training.keep_checkpoints=7", "optimizer.lr=0.25") == [
        "optimizer.lr was 0.005, is 0.25",
        "training.keep_checkpoints was 3, is 7",
    ]


def test_a_config_with_keys_of_another_version_is_compared_as_it_is():
    recorded = as_plain(tiny_config(Path("run")))
    recorded["training"]["gone"] = 1
    del recorded["training"]["keep_checkpoints"]
    assert changes(recorded, "training.seed=7") == [
        "training.gone was 1, is None",
        "training.keep_checkpoints was None, is 3",
        "training.seed was 42, is 7",
    ]
