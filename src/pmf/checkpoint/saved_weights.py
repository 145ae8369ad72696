"""Sets of weights without the rest of a checkpoint: for sampling, evaluation and export."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pmf.checkpoint.finding import WeightsFile, find_weights
from pmf.checkpoint.places import PRETRAINED, STATE
from pmf.config.sections import Config, as_plain
from pmf.config.yaml_file import config_from_plain
from pmf.distributed.shards import placed_like
from pmf.distributed.world import ALONE, World
from pmf.errors import UserError
from pmf.files import complete_or_absent, printable, read_object
from pmf.net.base import BaseNetwork
from pmf.tensors import read_safetensors, require_finite, require_same_tensors, save_safetensors


@dataclass(frozen=True, kw_only=True)
class SavedWeights:
    """Weights of one file and the config they were trained with.

    Attributes:
        source: names the weights in records: folder, file and the start of its sha256.
        sha256: of the file; of names and values where the checkpoint is not one file.
        average: ``online`` or the name of the average they were chosen as; None for a file that is what it is.
        averages: what they could be chosen from; () for a file that is what it is.
        path: the file; None where the checkpoint is not one file of this library.
        record: the plain values beside the file, of a checkpoint's ``state.json`` or of a folder for the hub.
    """

    weights: dict[str, Tensor]
    config: Config
    source: str
    sha256: str
    average: str | None
    averages: tuple[str, ...] = ()
    path: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the data they were trained on calls its classes, by label; () where it is not recorded."""
        names = self.record.get("class_names")
        return tuple(map(str, names)) if isinstance(names, list) else ()


def load_weights(path: Path, which: str | None, world: World = ALONE) -> SavedWeights:
    """Weights for sampling, from a run folder, a checkpoint folder or one safetensors file, whatever its name.

    Called by all processes; the main one finds and checks the file.

    Args:
        path: also what :func:`pmf.checkpoint.places.run_or_checkpoint` understands.
        which: ``online`` or the name of an average; None is what the run's config samples with. A single file is
            what it is.

    Raises:
        UserError: nothing there, damaged, or no such average (those there are listed).
    """
    (file,) = world.ask_main(lambda: find_weights(path, [which]))
    return read_weights(file)


def read_weights(file: WeightsFile) -> SavedWeights:
    """Read a file that :func:`find_weights` has found, in this process or in the main one.

    Raises:
        UserError: it cannot be read, or carries no config.
    """
    path = file.path
    try:
        weights, metadata = read_safetensors(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read any more ({error}); a run that goes on removes its old checkpoints: give a copy"
        ) from None
    config = recorded_config(metadata, str(path))
    if config is None:
        raise UserError(
            f"{path}: carries no config, so it was not written by this library's training; give the recipe of its "
            "network: --config NAME (pmf configs lists them)"
        )
    source = printable(f"{path.parent.name}/{path.name} {file.sha256[:16]}")
    return SavedWeights(
        weights=weights,
        config=config,
        source=source,
        sha256=file.sha256,
        average=file.average,
        averages=file.averages,
        path=path,
        record=_record_beside(path),
    )


def recorded_config(metadata: Mapping[str, str], where: str) -> Config | None:
    """The config that a safetensors file of ours carries; None for those of others. ``where`` names it in errors."""
    try:
        values = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError):
        return None
    return config_from_plain(values, where) if isinstance(values, dict) else None


def save_weights(path: Path, weights: Mapping[str, Tensor], config: Config) -> None:
    """Write one ``.safetensors`` file that carries its config, as :func:`load_weights` reads it."""
    with complete_or_absent(path) as temporary:
        save_safetensors(weights, temporary, {"config": json.dumps(as_plain(config))})


def _record_beside(file: Path) -> dict[str, Any]:
    """What is recorded in the folder of a file; {} where nothing is, or nothing that can be read.

    It does not stand in the file itself: of several texts safetensors keeps no order, and equal weights shall be equal
    bytes.
    """
    for record in (STATE, PRETRAINED):
        with contextlib.suppress(UserError):
            return read_object(file.parent / record, "")
    return {}


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a module. A network built for inference is also given those that only training uses.

    Raises:
        UserError: names the first missing or differing tensors, or the first with values that are not finite.
    """
    own = module.state_dict()
    spare = {name for name in weights if isinstance(module, BaseNetwork) and module.is_training_only(name)} - own.keys()
    kept = {name: tensor for name, tensor in weights.items() if name not in spare}
    require_same_tensors(
        own,
        kept,
        intro=f"{where}: weights of another network",
        advice="check model.name, data.image_size and data.num_classes",
    )
    require_finite(weights, intro=where, advice="such weights make no images; choose an older checkpoint")
    module.load_state_dict({name: placed_like(own[name], tensor) for name, tensor in kept.items()})
