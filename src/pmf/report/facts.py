"""The facts of a run, read from its folder: what was run, how far it is, what was measured. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmf.checkpoint.places import STATE, list_checkpoints
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.errors import UserError
from pmf.files import read_object
from pmf.optim.options import ema_names


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as its folder describes it.

    Attributes:
        config: of ``config.yaml``: the options of the last start, also where no checkpoint has been written since.
        step: optimizer steps behind the newest checkpoint; 0 without one.
        images_seen: images that were trained on in these steps.
        max_steps: steps of the whole run; those done, where an older version has not recorded it.
        averages: names of the averages of the weights, without ``online``.
        evaluations: what ``evaluation/*.json`` record: those of the training up to ``step``, in its order, then what
            ``eval.py fid`` has left there, by date.
        environment: ``environment.json``: versions, hardware, ``commit`` of the library where it was known; empty where
            it cannot be read.
    """

    config: Config
    step: int
    images_seen: int
    max_steps: int
    averages: tuple[str, ...]
    evaluations: list[dict[str, Any]]
    environment: dict[str, Any]


def read_facts(run_folder: Path) -> RunFacts:
    """Read a run folder; records in it that are damaged are passed over.

    Raises:
        UserError: it is no run folder, or its config cannot be read.
    """
    if not (run_folder / "config.yaml").is_file():
        raise UserError(f"{run_folder}: is no run folder (it has no config.yaml); give a run's training.output_dir")
    config = load_config(run_folder / "config.yaml")
    step, images = _newest_progress(run_folder)
    environment = _object_or_empty(run_folder / "environment.json")
    return RunFacts(
        config=config,
        step=step,
        images_seen=images,
        max_steps=config.training.max_steps or int(environment.get("max_steps", step)),
        averages=tuple(ema_names(config.ema)),
        evaluations=read_evaluations(run_folder, step),
        environment=environment,
    )


def read_evaluations(run_folder: Path, step: int) -> list[dict[str, Any]]:
    """The records of a run's evaluations; those of the training beyond ``step`` are of a course that was given up."""
    found = [_object_or_empty(path) for path in sorted((run_folder / "evaluation").glob("*.json"))]
    scored = [record for record in found if isinstance(record.get("fid"), int | float)]
    of_training = [record for record in scored if isinstance(record.get("step"), int) and record["step"] <= step]
    others = [record for record in scored if "step" not in record]
    by_date = sorted(others, key=lambda record: str(record.get("date")))
    return sorted(of_training, key=lambda record: int(record["step"])) + by_date


def _newest_progress(run_folder: Path) -> tuple[int, int]:
    """Steps and images behind the newest checkpoint whose records can be read."""
    for checkpoint in reversed(list_checkpoints(run_folder)):
        state = _object_or_empty(checkpoint / STATE)
        if {"step", "images_seen"} <= state.keys():
            return int(state["step"]), int(state["images_seen"])
    return 0, 0


def _object_or_empty(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, "")
    except UserError:
        return {}
