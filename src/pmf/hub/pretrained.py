"""The folder of a published model: what ``save_pretrained`` writes, and ``pmf.load`` and ``eval.py`` read.

config.json         format, library version, class names, average, what is known of the training, the whole config
model.safetensors   weights for inference, which carry their config too
README.md           the model card
model_index.json, pipeline.py, weights/location.py   for ``diffusers.DiffusionPipeline``
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from pmf.checkpoint.places import PRETRAINED, WEIGHTS
from pmf.checkpoint.saved_weights import SavedWeights, save_weights
from pmf.config.sections import Config, as_plain
from pmf.errors import UserError
from pmf.files import flush, printable, write_json, writing
from pmf.hub.anonymous import published_config, without_places
from pmf.hub.card import model_card
from pmf.hub.repository import FORMAT
from pmf.report.facts import read_facts

RECORDED = (
    *("fid", "inception_score", "kid", "precision_recall", "num_images", "images", "extractor", "reference"),
    *("versions", "date"),
)
"""What is published of the record of an evaluation: not the command, which may name places on a machine."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of how weights came to be; what is not known is None, and nothing is made up.

    Attributes:
        weights: folder, file and the start of its sha256.
        average: ``online`` or the name of the average.
        step: optimizer steps behind the weights.
        images_seen: images that were trained on in these.
        evaluations: records of evaluations, as ``RUN/evaluation`` has them, of these weights alone.
        commit: of the library that trained.
    """

    weights: str
    average: str | None = None
    step: int | None = None
    images_seen: int | None = None
    evaluations: Sequence[Mapping[str, Any]] = ()
    commit: str | None = None


FORM: dict[str, Any] = {"weights": str, "evaluations": list} | dict.fromkeys(("average", "commit"), str | None)
FORM |= dict.fromkeys(("step", "images_seen"), int | None)
"""What each attribute of :class:`Training` is in a file."""


def training_of(saved: SavedWeights) -> Training:
    """What is recorded beside weights: by a run, or by the folder that they were published in."""
    published = _published(saved.record.get("training"))
    if published is not None:
        return published
    step, images_seen = (saved.record.get(name) for name in ("step", "images_seen"))
    training = Training(weights=saved.source, average=saved.average, step=step, images_seen=images_seen)
    run = _run_of(saved.path)
    if run is None:
        return training
    try:
        facts = read_facts(run)
    except UserError:
        return training
    own = [
        {name: record[name] for name in RECORDED if name in record}
        for record in facts.evaluations
        if _measures(record, training) and _is_evaluation(record)
    ]
    commit = facts.environment.get("commit")
    return replace(training, evaluations=own, commit=commit)


def _published(values: Any) -> Training | None:
    """What a folder says, which others may have written; None if it is not of this form."""
    if not isinstance(values, dict) or "weights" not in values:
        return None
    told = {name: values[name] for name in FORM if name in values}
    if not all(isinstance(value, FORM[name]) for name, value in told.items()):
        return None
    evaluations = [record for record in told.pop("evaluations", ()) if isinstance(record, dict)]
    return Training(**told, evaluations=list(filter(_is_evaluation, evaluations)))


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether the card can show a record of an evaluation."""
    score = record.get("inception_score") or {"mean": 0, "std": 0}
    parts = (score, *(record.get(name, {}) for name in ("images", "reference", "extractor")))
    return all(isinstance(part, dict) for part in parts) and all(
        isinstance(number, int | float) for number in (record.get("fid"), score.get("mean"), score.get("std"))
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is published.

    Attributes:
        weights: of a network built for inference.
        config: that they were trained with.
        class_names: by label.
    """

    weights: Mapping[str, Tensor]
    config: Config
    class_names: Sequence[str]
    training: Training


def write_pretrained(folder: Path, model: Model, name: str) -> None:
    """Write a model's folder, complete or absent. Nothing in it names a place on this machine.

    Args:
        folder: must not be there, or be empty.
        name: by which its card says that it can be loaded.

    Raises:
        UserError: it holds something already, or storage fails.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; remove it or choose another name")
    temporary = folder.absolute().with_name(f".incomplete_{folder.absolute().name}")
    with writing(str(folder)):
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        temporary.mkdir(parents=True)
        try:
            _write_files(temporary, replace(model, config=published_config(model.config)), name)
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
            if folder.exists():
                folder.rmdir()
            temporary.rename(folder)
            flush(folder.absolute().parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_files(folder: Path, model: Model, name: str) -> None:
    training = without_places(asdict(model.training))
    save_weights(folder / WEIGHTS, model.weights, model.config)
    record = {
        "format": FORMAT,
        "library_name": "pmf",
        "library_version": version("pmf"),
        "class_names": list(model.class_names),
        "training": training,
        "config": as_plain(model.config),
    }
    write_json(folder / PRETRAINED, record)
    known = {key: value for key, value in training.items() if value is not None}
    (folder / "README.md").write_text(printable(model_card(name, model.config, model.class_names, known)))
    index = {
        "_class_name": ["pipeline", "PmfPipeline"],
        "_diffusers_version": "0.35.0",
        "weights": ["location", "WeightsLocation"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "weights").mkdir()
    for source, copy in (("pipeline.py", "pipeline.py"), ("location.py", "weights/location.py")):
        (folder / copy).write_text(files("pmf.hub").joinpath(source).read_text())


def _run_of(file: Path | None) -> Path | None:
    """The run folder whose checkpoint a file stands in."""
    if file is None or file.absolute().parent.parent.name != "checkpoints":
        return None
    return file.absolute().parents[2]


def _measures(record: Mapping[str, Any], training: Training) -> bool:
    """Whether an evaluation is one of these weights, while they were trained or afterwards."""
    images = record.get("images")
    if not isinstance(images, dict):
        return False
    of_step = record.get("step") == training.step is not None and images.get("ema") == training.average
    return of_step or images.get("weights") == training.weights
