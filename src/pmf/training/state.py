"""The state of a run between two steps, from and to a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pmf.checkpoint.saved_weights import load_strictly
from pmf.checkpoint.storage import Checkpoint, read_checkpoint
from pmf.config.sections import Config, as_plain
from pmf.distributed.shards import complete
from pmf.distributed.world import World
from pmf.errors import UserError
from pmf.files import printable
from pmf.flow.objective import Objective
from pmf.optim.ema import WeightAverages
from pmf.optim.groups import parameter_groups
from pmf.optim.optimizer import RuleOptimizer
from pmf.optim.options import ema_names
from pmf.optim.rule import create_rule
from pmf.tensors import require_same_tensors

SPIKE = 5.0


@dataclass
class Progress:
    """How far the run is, and metrics summed since the last log line."""

    step: int = 0
    images: int = 0
    """Images trained on, those of skipped steps included. Counted, because a resume may change the batch size."""
    last_images: int = 0
    """Images of the last step."""
    place: dict[str, Any] | None = None
    """The place in the data (:class:`pmf.data.place.Place` as a dict) when the last checkpoint was made."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    spikes: int = 0
    usual_norm: float = 0.0
    window_steps: int = 0
    window_sums: dict[str, float] = field(default_factory=dict)

    def count_step(self, images: int) -> None:
        """Count a step over so many images, whatever comes of it."""
        self.step += 1
        self.images += images
        self.last_images = images

    def crossed(self, every: int) -> bool:
        """Whether the last step has crossed a multiple of so many images."""
        return self.images // every > (self.images - self.last_images) // every

    def add(self, values: dict[str, float]) -> None:
        """Count the metrics of one step."""
        self.window_steps += 1
        for name, value in values.items():
            self.window_sums[name] = self.window_sums.get(name, 0.0) + value

    def is_spike(self, norm: float) -> bool:
        """Whether a gradient's norm is ``SPIKE`` times the running mean of those before it; such steps are counted."""
        limit = SPIKE * self.usual_norm if self.usual_norm else norm
        self.spikes += norm > limit
        # A spike moves the mean as the largest usual value would.
        self.usual_norm += 0.05 * (min(norm, limit) - self.usual_norm) if self.usual_norm else norm
        return norm > limit

    def average_window(self, world: World) -> None:
        """Replace the sums by their means over ranks; called by all of them."""
        if world.size == 1 or not self.window_sums:
            return
        sums = torch.tensor(list(self.window_sums.values()), dtype=torch.float64, device=world.device)
        world.add_up(sums)
        self.window_sums = dict(zip(self.window_sums, (sums / world.size).tolist(), strict=True))

    def start_window(self) -> None:
        """Forget the sums."""
        self.window_steps, self.window_sums = 0, {}


def checkpoint_bytes(network: nn.Module, config: Config) -> int:
    """Size of a checkpoint's tensors, known from shapes alone: the network may be on the meta device."""
    weights = sum(parameter.nbytes for parameter in network.parameters())
    moments = sum(
        len(create_rule(group["kind"]).moments) * parameter.nbytes
        for group in parameter_groups(network, config.optimizer)
        for parameter in group["params"]
    )
    return (1 + len(ema_names(config.ema))) * weights + moments


@dataclass
class TrainingState:
    """All that changes from step to step. Draws are functions of the step, and need no state."""

    network: nn.Module
    optimizer: RuleOptimizer
    averages: WeightAverages
    scaler: torch.amp.GradScaler | None
    objective: Objective[Any, Any]
    progress: Progress = field(default_factory=Progress)

    def to_checkpoint(self, config: Config, world_size: int, class_names: Sequence[str] = ()) -> Checkpoint:
        """Named tensors and plain values, complete on the main rank only; called by all ranks."""
        tensors = {
            "model": complete(self.network.state_dict(), everywhere=False),
            "optimizer": self.optimizer.named_state(self.network),
            **{f"ema_{name}": self.averages.state(name) for name in self.averages.names},
        }
        if own := self.objective.state():
            tensors["objective"] = own
        state = {
            "format": 2,
            "step": self.progress.step,
            "images_seen": self.progress.images,
            "world_size": world_size,
            "progress": asdict(self.progress),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "config": as_plain(config),
            "class_names": printable(class_names),
        }
        return Checkpoint(tensors=tensors, state=state)

    def restore(self, path: Path) -> Checkpoint:
        """Continue from a checkpoint folder that was found intact, bit for bit.

        Raises:
            UserError: files that are not there, another network, optimizer or objective, weights that are not finite,
                or an average that is not there.
        """
        checkpoint = read_checkpoint(path)
        load_strictly(self.network, checkpoint.tensors["model"], str(path))
        there = [stem.removeprefix("ema_") for stem in checkpoint.tensors if stem.startswith("ema_")]
        for name in self.averages.names:
            if name not in there:
                raise UserError(f"{path}: has no average '{name}'; in the ema section choose from: {', '.join(there)}")
            self.averages.load(name, checkpoint.tensors[f"ema_{name}"])
        self.optimizer.load_named_state(self.network, checkpoint.tensors["optimizer"])
        self._restore_objective(checkpoint, path)
        if self.scaler is not None and checkpoint.state["scaler"] is not None:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = _progress(checkpoint.state)
        return checkpoint

    def _restore_objective(self, checkpoint: Checkpoint, path: Path) -> None:
        """What the objective keeps from step to step; most keep nothing, and leave alone what another has saved."""
        own = self.objective.state()
        if not own:
            return
        advice = "set objective.name to that of the checkpoint, or begin a new run in another training.output_dir"
        if "objective" not in checkpoint.tensors:
            raise UserError(f"{path}: has no objective.safetensors, from which this objective continues; {advice}")
        saved = checkpoint.tensors["objective"]
        require_same_tensors(own, saved, intro=f"{path}: objective.safetensors is of another objective", advice=advice)
        self.objective.load_state(saved)


def _progress(state: dict[str, Any]) -> Progress:
    """From ``state.json``; format 1 had the images as its step times the batch size."""
    progress = Progress(**state["progress"])
    if state["format"] == 1 and progress.step:
        progress.images = state["images_seen"]
        progress.last_images = progress.images // progress.step
    return progress
