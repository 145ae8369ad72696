"""What the doctor asks of a machine, a data set and a run folder: the checks of training itself, without training."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from pmf.compilers import missing_for_compilation
from pmf.config.network import network_of
from pmf.config.sections import TRACKERS, Config
from pmf.data.order import steps_per_epoch
from pmf.data.source import create_source, require_first_images
from pmf.distributed.batching import accumulation_steps
from pmf.errors import CrossFieldError, UserError, first_line
from pmf.flow.objective import create_objective
from pmf.optim.schedule import learning_rate
from pmf.tables import find_row
from pmf.training.compilation import decide_compilation
from pmf.training.environment import RECORDED_PACKAGES
from pmf.training.preflight import (
    require_compiler,
    require_cuda_graph,
    require_decoder,
    require_device,
    require_storage,
)
from pmf.training.run_folder import RunFolder
from pmf.training.state import checkpoint_bytes
from pmf.training.tracker_kinds import wandb_problem
from pmf.training.trackers import FAILURES, TrackedRun

T = TypeVar("T")


class Verdict(NamedTuple):
    """What was found on one subject; ``verdict`` is ok, warning or error."""

    verdict: str
    subject: str
    text: str


def examine(config: Config) -> Iterator[Verdict]:
    """Ask everything that can be asked without training, one subject after the other; nothing is written."""
    packages = ", ".join(f"{name} {version(name)}" for name in RECORDED_PACKAGES)
    yield Verdict("ok", "software", f"python {platform.python_version()}, {packages}")
    yield from _ask("device", lambda: _device(config))
    yield from _ask("compiler", lambda: _compiler(config))
    yield from _ask("batch", lambda: _batch(config))
    max_steps = yield from _ask("data", lambda: _data(config))
    yield from _ask("model", lambda: _model(config, max_steps or config.training.max_steps or sys.maxsize))
    yield from _ask("images", lambda: _images(config))
    yield from _run_folder(config)
    yield from _trackers(config)


def _ask(subject: str, check: Callable[[], Generator[Verdict, None, T]]) -> Generator[Verdict, None, T | None]:
    """The verdicts of a check and what it returns; a mistake that it finds is an error on ``subject``."""
    try:
        return (yield from check())
    except (UserError, CrossFieldError) as error:
        yield Verdict("error", subject, str(error))
        return None


def _device(config: Config) -> Generator[Verdict]:
    require_device(config.training)
    require_cuda_graph(config.training, processes=_processes())
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Verdict("ok", "device", f"{', '.join(names)}; mixed_precision {config.training.mixed_precision}")
    elif torch.version.cuda or torch.version.hip:
        yield Verdict("warning", "device", "torch can use GPUs and finds none: training would run on the CPU")
    else:
        yield Verdict("ok", "device", f"CPU, {os.cpu_count()} cores; this torch is built without GPU support")


def _compiler(config: Config) -> Generator[Verdict]:
    require_compiler(config.training)
    asked = config.training.compile
    if asked is False:
        yield Verdict("ok", "compiler", "not needed: training.compile is false")
    elif asked == "auto" and not torch.cuda.is_available():
        yield Verdict("ok", "compiler", "not needed: training.compile is auto, and this is not CUDA")
    elif missing := missing_for_compilation(on_gpu=torch.cuda.is_available()):
        yield Verdict("warning", "compiler", f"the run would not be compiled, which needs {missing}")
    else:
        yield Verdict("ok", "compiler", "there")


def _processes() -> int:
    """One for each GPU, as they are usually launched."""
    return max(torch.cuda.device_count(), 1)


def _batch(config: Config) -> Generator[Verdict]:
    processes = _processes()
    accumulation = accumulation_steps(config.training.global_batch_size, config.training.micro_batch_size, processes)
    total = config.training.global_batch_size
    micro = total // processes // accumulation
    yield Verdict("ok", "batch", f"{total} = {micro} x {accumulation} accumulation x {processes} process(es)")


def _data(config: Config) -> Generator[Verdict, None, int]:
    """Returns the steps of the run."""
    source = create_source(config.data, config.training.seed)
    for warning in source.warnings:
        yield Verdict("warning", "data", warning)
    steps = steps_per_epoch(len(source), config.training.global_batch_size)
    require_first_images(source)
    yield Verdict("ok", "data", f"{len(source):,} images, {steps} steps an epoch; the first images decode")
    max_steps = config.training.max_steps or math.ceil((config.training.epochs or 0) * steps)
    yield from _ask("schedule", lambda: _schedule(config, max_steps))
    return max_steps


def _schedule(config: Config, max_steps: int) -> Generator[Verdict]:
    learning_rate(config.optimizer, 0, max_steps)
    yield Verdict("ok", "schedule", f"{config.optimizer.schedule} over {max_steps} steps")


def _model(config: Config, max_steps: int) -> Generator[Verdict]:
    with torch.device("meta"):  # shapes only
        network = network_of(config)
    training = config.training
    objective = create_objective(config.objective, num_classes=config.data.num_classes)
    compilation = decide_compilation(config, network, objective)
    objective.require_network(network, compiled=compilation.on, parallel=training.parallel)
    if training.cuda_graph:
        objective.require_recordable(network)
    yield Verdict("ok", "model", f"{config.model.name}, {sum(p.numel() for p in network.parameters()):,} parameters")
    yield Verdict("ok", "compilation", str(compilation))
    yield from _ask("disk", lambda: _disk(config, checkpoint_bytes(network, config), max_steps))


def _images(config: Config) -> Generator[Verdict]:
    yield Verdict("ok", "images", require_decoder(config))


def _disk(config: Config, bytes_of_checkpoint: int, max_steps: int) -> Generator[Verdict]:
    yield Verdict("ok", "disk", require_storage(config.training, bytes_of_checkpoint, max_steps))


def _run_folder(config: Config) -> Generator[Verdict]:
    told: list[str] = []
    found, problem = None, None
    try:
        found = RunFolder(Path(config.training.output_dir)).resume_point("auto", told.append)
    except UserError as error:
        problem = str(error)
    for text in told:
        verdict = "warning" if text.startswith("warning: ") else "ok"
        yield Verdict(verdict, "run folder", text.removeprefix("warning: "))
    if problem is not None:
        yield Verdict("error", "run folder", problem)
    elif found is not None:
        yield Verdict("ok", "run folder", f"{found}: training would continue here")


def _trackers(config: Config) -> Iterator[Verdict]:
    if not config.tracking.trackers:
        yield Verdict("ok", "tracker", "metrics.jsonl only: tracking.trackers is empty")
    run = TrackedRun(folder=Path(config.training.output_dir), config=config, resumed_step=0, warn=print)
    for name in config.tracking.trackers:
        try:
            find_row(TRACKERS, name)(run)  # starts nothing
        except FAILURES as error:
            yield Verdict("warning", "tracker", f"{name}: {first_line(error)}; the run would go on without it")
            continue
        if name == "wandb" and (problem := wandb_problem()):
            yield Verdict("warning", "tracker", f"{name}: {problem}; it would log offline")
        else:
            yield Verdict("ok", "tracker", f"{name}, project {config.tracking.project}")
