"""Weights & Biases, TensorBoard and trackio, as this library uses them: the rows of ``TRACKERS``.

Accelerate's classes do the talking; here stand what makes a resume go on in the same run, and images.
"""

from __future__ import annotations

import contextlib
import os
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

from pmf.config.sections import as_plain
from pmf.errors import UserError, first_line
from pmf.files import printable
from pmf.training import trackers
from pmf.training.tracker_ids import kept_id
from pmf.training.trackers import FAILURES, TrackedRun

WANDB_ID, TRACKIO_ID = "wandb_run.json", "trackio_run.json"
"""In the run folder: the id of its run there, and the folder that it belongs to."""


class WandbRun(WandBTracker):
    """A run of Weights & Biases: online if that can be had within ``TIMEOUT``, else offline."""

    def __init__(self, run: TrackedRun) -> None:
        _import("wandb")
        super().__init__(run.project)
        self._run = run

    def start(self) -> None:
        """Raises whatever wandb raises where it cannot even log offline."""
        run_id = kept_id(self._run, WANDB_ID, os.environ.get("WANDB_RUN_ID"))
        problem = wandb_problem()
        if problem is None:
            try:
                return self._open(run_id)
            except FAILURES as error:
                problem = first_line(error)
                self.let_go(trackers.TIMEOUT)  # its service still holds the id that is asked for next
        key = os.environ.pop("WANDB_API_KEY", None)  # nobody asks for it offline, but a malformed one would be refused
        try:
            self._open(run_id, mode="offline")
        except FAILURES as error:
            offline = first_line(error)
            raise RuntimeError(
                problem if offline == problem else f"{problem}; nor can it log offline: {offline}"
            ) from None
        finally:
            if key is not None:
                os.environ["WANDB_API_KEY"] = key
        upload = f"wandb sync {self._run.folder}/wandb/offline-run-*"
        self._run.warn(f"{problem}; logging offline, upload later with `{upload}`")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing: it was given at the start."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """The step is a metric like others: its own counter cannot go back to an earlier one, as a resume may."""
        super().log({**values, "step": step}, **kwargs)

    def let_go(self, seconds: float) -> None:
        """End the service, and remove its exit hook, which could wait for the service for ever.

        The hook goes at once; the service may take any time, and gets so many seconds.
        """

        def end() -> None:
            import wandb

            with contextlib.suppress(*FAILURES):
                wandb.teardown()

        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(seconds)

    def _open(self, run_id: str, **mode: Any) -> None:
        import wandb

        self.init_kwargs = {
            "name": self._run.name,
            "id": run_id,
            "config": printable(as_plain(self._run.config)),
            "dir": self._run.folder,
            "resume": "allow",
            "settings": wandb.Settings(init_timeout=trackers.TIMEOUT, finish_timeout=trackers.TIMEOUT),
            **mode,
        }
        super().start()
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")


class TensorBoardFiles(TensorBoardTracker):
    """Event files in ``RUN/tensorboard``; what they hold of steps that are done again is not shown twice."""

    def __init__(self, run: TrackedRun) -> None:
        _import("tensorboard", "torch.utils.tensorboard")
        super().__init__("tensorboard", run.folder, purge_step=run.resumed_step + 1)
        self._run = run

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """As a text. Accelerate would make a run of its own of it, with no curves, at each start."""
        table = "\n".join(f"    {key}: {value}" for key, value in values.items())  # indented: shown as it stands
        self.log({"config": table}, step=self._run.resumed_step)

    def log_images(self, values: dict[str, list[np.ndarray]], step: int | None = None, **kwargs: Any) -> None:
        """Arrays (H, W, 3) uint8."""
        images = {name: np.stack(arrays) for name, arrays in values.items()}
        super().log_images(images, step=step, dataformats="NHWC", **kwargs)


class TrackioRun(TrackioTracker):
    """A run of trackio, in its folder of this machine or where its environment variables say."""

    def __init__(self, run: TrackedRun) -> None:
        _import("trackio")
        super().__init__(run.project)
        self._run = run

    def start(self) -> None:
        """Raises whatever trackio raises."""
        self.init_kwargs = {
            # It knows runs by their names alone, and folders of two runs may have the same.
            "name": f"{self._run.name}-{kept_id(self._run, TRACKIO_ID)}",
            "config": printable(as_plain(self._run.config)),
            "resume": "allow",
            "embed": False,
        }
        super().start()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing: it was given at the start."""

    def log_images(self, values: dict[str, list[np.ndarray]], step: int | None = None, **kwargs: Any) -> None:
        """Arrays (H, W, 3) uint8."""
        import trackio

        for name, arrays in values.items():
            for array in arrays:
                self.log({name: trackio.Image(array)}, step=step, **kwargs)


def wandb_problem() -> str | None:
    """Why Weights & Biases would log offline on this machine, as far as can be told without asking its server."""
    try:
        import wandb  # takes a second

        if wandb.setup().settings.mode in ("offline", "disabled", "dryrun") or wandb.login(prompt=False, verify=False):
            return None
    except FAILURES as error:
        return first_line(error)
    return "there is no login; run `wandb login` or set WANDB_API_KEY"


def _import(package: str, module: str | None = None) -> None:
    """Import a package here, in the main thread.

    If the tracker's own thread did, the main thread could import parts of the same packages at that time, and of two
    threads that wait for each other's imports Python hands one a module that is half there: that one could be the run.

    Raises:
        UserError: it is not installed.
        Exception: whatever it raises.
    """
    if find_spec(package) is None:
        raise UserError(f"{package} is not installed; install the extra `trackers` of pmf, or {package} alone")
    import_module(module or package)
