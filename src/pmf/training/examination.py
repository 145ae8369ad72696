"""What the doctor asks of a machine, a data set and a run folder: the checks of training itself, without training."""

from __future__ import annotations

import math
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pmf.config.sections import Config
from pmf.data.order import steps_per_epoch
from pmf.data.source import create_source, require_first_images
from pmf.distributed.batching import accumulation_steps
from pmf.net.sizes import create_network
from pmf.optim.schedule import learning_rate
from pmf.training.metrics import wandb_problem
from pmf.training.preflight import require_compiler, require_device, require_storage
from pmf.training.run_folder import RECORDED_PACKAGES, RunFolder
from pmf.training.state import checkpoint_bytes

if TYPE_CHECKING:
    from pmf.doctor import Report


def examine(config: Config, report: Report) -> None:
    """Ask everything that can be asked without training; nothing is written."""
    packages = ", ".join(f"{name} {version(name)}" for name in RECORDED_PACKAGES)
    report.tell("ok", "software", f"python {platform.python_version()}, {packages}")
    with report.on("device"):
        require_device(config.training)
        _tell_device(report, config)
    with report.on("compiler"):
        require_compiler(config.training)
        report.tell("ok", "compiler", "there" if config.training.compile else "not needed: training.compile is false")
    with report.on("batch"):
        _tell_batch(report, config)
    max_steps = config.training.max_steps
    with report.on("data"):
        max_steps = _tell_data(report, config)
    with report.on("model"):
        with torch.device("meta"):  # shapes only
            network = create_network(
                config.model.name,
                image_size=config.data.image_size,
                num_classes=config.data.num_classes,
                channels=config.data.channels,
            )
        report.tell("ok", "model", f"{config.model.name}, {sum(p.numel() for p in network.parameters()):,} parameters")
        with report.on("disk"):
            told = require_storage(config.training, checkpoint_bytes(network, config), max_steps or sys.maxsize)
            report.tell("ok", "disk", told)
    with report.on("run folder"):
        _tell_run_folder(report, config)
    _tell_tracker(report, config)


def _tell_device(report: Report, config: Config) -> None:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        report.tell("ok", "device", f"{', '.join(names)}; mixed_precision {config.training.mixed_precision}")
    elif torch.version.cuda or torch.version.hip:
        report.tell("warning", "device", "torch can use GPUs and finds none: training would run on the CPU")
    else:
        report.tell("ok", "device", f"CPU, {os.cpu_count()} cores; this torch is built without GPU support")


def _tell_batch(report: Report, config: Config) -> None:
    processes = max(torch.cuda.device_count(), 1)
    accumulation = accumulation_steps(config.training.global_batch_size, config.training.micro_batch_size, processes)
    total = config.training.global_batch_size
    micro = total // processes // accumulation
    report.tell("ok", "batch", f"{total} = {micro} x {accumulation} accumulation x {processes} process(es)")


def _tell_data(report: Report, config: Config) -> int:
    """Returns the steps of the run."""
    source = create_source(config.data, config.training.seed)
    for warning in source.warnings:
        report.tell("warning", "data", warning)
    steps = steps_per_epoch(len(source), config.training.global_batch_size)
    require_first_images(source)
    report.tell("ok", "data", f"{len(source):,} images, {steps} steps an epoch; the first images decode")
    max_steps = config.training.max_steps or math.ceil((config.training.epochs or 0) * steps)
    with report.on("schedule"):
        learning_rate(config.optimizer, 0, max_steps)
        report.tell("ok", "schedule", f"{config.optimizer.schedule} over {max_steps} steps")
    return max_steps


def _tell_run_folder(report: Report, config: Config) -> None:
    def say(text: str) -> None:
        verdict = "warning" if text.startswith("warning: ") else "ok"
        report.tell(verdict, "run folder", text.removeprefix("warning: "))

    found = RunFolder(Path(config.training.output_dir)).resume_point("auto", say)
    if found is not None:
        report.tell("ok", "run folder", f"{found}: training would continue here")


def _tell_tracker(report: Report, config: Config) -> None:
    if not config.tracking.wandb:
        report.tell("ok", "tracker", "metrics.jsonl only: tracking.wandb is false")
    elif problem := wandb_problem():
        report.tell("warning", "tracker", f"Weights & Biases: {problem}; it would log offline")
    else:
        report.tell("ok", "tracker", f"Weights & Biases, project {config.tracking.project}")
