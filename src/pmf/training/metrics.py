"""Where metrics go: ``metrics.jsonl`` always, Weights & Biases on request. The latter never ends a run."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmf.config.sections import Config, as_plain
from pmf.files import RIGHTS, complete_or_absent, printable, storage_reason, writing

TIMEOUT = 30.0
"""Seconds to wait for an answer of Weights & Biases; a start and an end may each take two of these."""
RUN_ID = "wandb_run.json"
"""In the run folder: the id of its run at Weights & Biases, and the folder that it belongs to."""
FAILURES = (Exception, SystemExit)
"""What a tracker may raise."""


class MetricsLog:
    """Appends one JSON object per line. After a resume, lines of steps that will be done again are dropped first."""

    def __init__(self, run_folder: Path, config: Config, resumed_step: int, warn: Callable[[str], None]) -> None:
        """Open both.

        Raises:
            UserError: ``metrics.jsonl`` cannot be written.
        """
        self.path = run_folder / "metrics.jsonl"
        self._warn = warn
        with writing(str(self.path), RIGHTS, again=True):
            self._keep_until(resumed_step)
        self._tracker = None
        if config.tracking.wandb and (run := _start_wandb(run_folder, config, warn)) is not None:
            self._tracker = _Tracker(run)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Log one record; it must have a ``step``.

        Raises:
            UserError: the disk is full or fails.
        """
        with writing(str(self.path), RIGHTS, again=True), self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._tracker is not None:
            self._tracker.log(dict(metrics))
            self._leave_if_broken()

    def close(self) -> None:
        """Finish the remote run, if there is one; waits for it for a limited time."""
        if self._tracker is not None:
            self._tracker.finish()
            self._leave_if_broken()

    def _leave_if_broken(self) -> None:
        if self._tracker is not None and self._tracker.problem:
            self._warn(f"warning: tracking.wandb: stopped ({self._tracker.problem}); metrics are in {self.path}")
            self._tracker = None
            _let_go_of_wandb(1)

    def _keep_until(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(errors="surrogateescape").splitlines(keepends=True):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the torn last line of a killed process
            done = record.get("step") if isinstance(record, dict) else None
            if not isinstance(done, int | float) or done <= step:  # what is not ours stays
                kept.append(line)
        with complete_or_absent(self.path) as temporary:
            temporary.write_text("".join(kept), errors="surrogateescape")


class _Tracker:
    """A run of Weights & Biases, used from a thread of its own: its service may fail or stop to answer at any time.

    Attributes:
        problem: why the run is lost, once it is.
    """

    def __init__(self, run: Any) -> None:
        self.problem: str | None = None
        self._run = run
        self._records: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="wandb")
        self._thread.start()

    def log(self, record: dict[str, Any]) -> None:
        """Returns at once."""
        self._records.put(record)

    def finish(self) -> None:
        """Send the rest and end the run, or give up."""
        self._records.put(None)
        self._thread.join(2 * TIMEOUT)  # it waits for the server itself, for half of that
        if self._thread.is_alive():
            self.problem = f"no answer within {2 * TIMEOUT:g} seconds"

    def _work(self) -> None:
        try:
            while (record := self._records.get()) is not None:
                self._run.log(record)
            self._run.finish()
        except FAILURES as error:
            self.problem = _first_line(error)


def wandb_problem() -> str | None:
    """Why Weights & Biases would log offline on this machine, as far as can be told without asking its server."""
    try:
        import wandb  # takes a second

        if wandb.setup().settings.mode in ("offline", "disabled", "dryrun") or wandb.login(prompt=False, verify=False):
            return None
    except FAILURES as error:
        return _first_line(error)
    return "there is no login; run `wandb login` or set WANDB_API_KEY"


def _start_wandb(run_folder: Path, config: Config, warn: Callable[[str], None]) -> Any:
    """A run that is online if that can be had within ``TIMEOUT``, else offline; None if it cannot be had at all."""
    run_id = _run_id(run_folder, warn)
    problem = wandb_problem()
    if problem is None:
        try:
            return _open_run(run_folder, config, run_id)
        except FAILURES as error:
            problem = _first_line(error)
            _let_go_of_wandb(TIMEOUT)  # its service still holds the id that is asked for next
    key = os.environ.pop("WANDB_API_KEY", None)  # nobody asks for it offline, but a malformed one would be refused
    try:
        run = _open_run(run_folder, config, run_id, mode="offline")
    except FAILURES as error:
        offline = _first_line(error)
        both = problem if offline == problem else f"{problem}; nor can it log offline: {offline}"
        warn(f"warning: tracking.wandb: {both}; metrics go to {run_folder}/metrics.jsonl alone")
        return None
    finally:
        if key is not None:
            os.environ["WANDB_API_KEY"] = key
    upload = f"wandb sync {run_folder}/wandb/offline-run-*"
    warn(f"warning: tracking.wandb: {problem}; logging offline, upload later with `{upload}`")
    return run


def _open_run(run_folder: Path, config: Config, run_id: str, **mode: Any) -> Any:
    import wandb

    run = wandb.init(
        project=config.tracking.project,
        name=printable(config.tracking.name or run_folder.absolute().name),
        id=run_id,
        config=printable(as_plain(config)),
        dir=run_folder,
        resume="allow",
        settings=wandb.Settings(init_timeout=TIMEOUT, finish_timeout=TIMEOUT),
        **mode,
    )
    # A resume may go back to an earlier step. The tracker's own counter cannot, and drops what is logged for less than
    # it has seen; so the step is a metric like others, and the one that they are drawn against.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _run_id(run_folder: Path, warn: Callable[[str], None]) -> str:
    """The id that the run folder keeps, made at its first use; ``WANDB_RUN_ID`` is taken and kept where it is set.

    A copy of a run folder is another run: it gets an id of its own as long as the original is there.
    """
    file, here = run_folder / RUN_ID, str(run_folder.absolute())
    kept, folder = _kept_id(file)
    if file.exists() and kept is None:
        warn(f"warning: tracking.wandb: {file} holds no run id; this becomes a new run there")
    if kept is not None and folder != here and _is_copy(file, Path(folder) / RUN_ID):
        warn(f"warning: tracking.wandb: {here} is a copy of {folder}; this becomes a new run there")
        kept = None
    run_id = os.environ.get("WANDB_RUN_ID") or kept or secrets.token_hex(4)
    if (run_id, here) != (kept, folder):
        try:
            with complete_or_absent(file) as temporary:
                temporary.write_text(json.dumps({"id": run_id, "folder": here}))
        except OSError as error:
            warn(f"warning: {file}: cannot be written ({storage_reason(error)}); a resume will be a new run at W&B")
    return run_id


def _kept_id(file: Path) -> tuple[str | None, str]:
    """Id and folder of an id file; (None, "") where it is absent, or is something else."""
    try:
        record = json.loads(file.read_bytes())
        if re.fullmatch(r"[^/\\#?%:]{1,128}", record["id"]):
            return record["id"], str(record["folder"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None, ""


def _is_copy(file: Path, original: Path) -> bool:
    """Whether both are there, hold the same id, and are not one file under two names."""
    return _kept_id(file)[0] == _kept_id(original)[0] and not original.samefile(file)


def _let_go_of_wandb(seconds: float) -> None:
    """End the service of Weights & Biases, and remove its exit hook, which could wait for the service for ever.

    The hook goes at once; the service may take any time, and gets so many seconds.
    """

    def let_go() -> None:
        import wandb

        with contextlib.suppress(*FAILURES):
            wandb.teardown()

    thread = threading.Thread(target=let_go, daemon=True)
    thread.start()
    thread.join(seconds)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
