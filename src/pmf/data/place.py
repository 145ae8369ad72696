"""How far a run is in its data, and how far it has to go. Batches may have been of several sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pmf.data.order import steps_per_epoch
from pmf.errors import AgreedError


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a run is in its data, between two steps.

    Attributes:
        num_samples: images in the data set.
        epoch: number of the epoch that the last step belongs to.
        taken: (batch size, batches) that this epoch has had, in order; neighbours differ in size.
    """

    num_samples: int
    epoch: int = 0
    taken: tuple[tuple[int, int], ...] = ()

    @property
    def seen(self) -> int:
        """Images that this epoch has had."""
        return sum(size * batches for size, batches in self.taken)

    def left(self, global_batch_size: int) -> int:
        """Full batches that are left in this epoch."""
        return (self.num_samples - self.seen) // global_batch_size

    def after(self, batches: int, global_batch_size: int) -> Place:
        """The place that many steps further, all of one batch size."""
        if not batches:
            return self
        beyond = batches - self.left(global_batch_size)
        if beyond > 0:
            epochs, last = divmod(beyond - 1, steps_per_epoch(self.num_samples, global_batch_size))
            return replace(self, epoch=self.epoch + 1 + epochs, taken=((global_batch_size, last + 1),))
        taken = self.taken
        if taken and taken[-1][0] == global_batch_size:
            *before, (_, had) = taken
            return replace(self, taken=(*before, (global_batch_size, had + batches)))
        return replace(self, taken=(*taken, (global_batch_size, batches)))

    def passes(self, global_batch_size: int) -> float:
        """Passes so far: those that are over, and the part that this one is through if it goes on with this batch."""
        return self.epoch + self.seen / (self.seen + self.left(global_batch_size) * global_batch_size)

    def steps_until(self, passes: float, global_batch_size: int) -> int:
        """Steps from here until there have been so many passes; negative if there have been more already."""
        left = self.left(global_batch_size)
        ahead = passes - self.epoch
        if ahead > 1:
            return left + math.ceil((ahead - 1) * steps_per_epoch(self.num_samples, global_batch_size))
        return math.ceil((ahead * (self.seen + left * global_batch_size) - self.seen) / global_batch_size)


def resumed_place(saved: Mapping[str, Any] | None, step: int, batch_size: int, num_samples: int) -> Place:
    """The place in the data at which a run goes on.

    Args:
        saved: what ``dataclasses.asdict`` made of its place, by way of JSON; None where it was not yet saved: all steps
            had one batch size then.
        step: of the checkpoint; 0 for a run that begins.
        batch_size: of its last step.
        num_samples: images in the data set. Where it has another number than before, a new epoch begins.
    """
    start = Place(num_samples=num_samples)
    if saved is None:
        return start.after(step, batch_size)
    if saved["num_samples"] != num_samples:
        return replace(start, epoch=saved["epoch"] + 1)
    return replace(start, epoch=saved["epoch"], taken=tuple((size, batches) for size, batches in saved["taken"]))


def steps_in_all(
    place: Place, step: int, *, global_batch_size: int, max_steps: int | None, epochs: float | None
) -> int:
    """Length of a run, in steps: ``training.max_steps``, or what makes ``training.epochs`` passes over the data.

    Args:
        place: after ``step`` steps of the run.

    Raises:
        AgreedError: the run has gone further already.
    """
    size, passes = global_batch_size, epochs or 0.0
    if max_steps is not None:
        asked, last = f"max_steps is {max_steps}", max_steps
    elif place == Place(num_samples=place.num_samples).after(step, size):  # all steps had this batch size
        asked, last = f"epochs is {passes:g}", math.ceil(passes * steps_per_epoch(place.num_samples, size))
    else:
        asked, last = f"epochs is {passes:g}", step + place.steps_until(passes, size)
    if step > last:
        raise AgreedError(
            f"training.{asked}, and this run is beyond that, at step {step}; raise it, name an older checkpoint with "
            "--resume, or choose another training.output_dir"
        )
    return last
