"""The folder of one run: what is in it, and where a run continues."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmf.checkpoint.integrity import find_resumable, require_intact
from pmf.checkpoint.places import MANIFEST, list_checkpoints, run_or_checkpoint
from pmf.checkpoint.storage import Checkpoint
from pmf.config.sections import Config, as_plain
from pmf.config.yaml_file import config_from_plain, save_config
from pmf.errors import UserError
from pmf.files import NO_LOCKS, complete_or_absent, flush, require_reachable, storage_reason, write_json, writing

PREEMPTED = "preempted"
IN_USE = "in use"


@dataclass(frozen=True)
class RunFolder:
    """``config.yaml``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``, ``latest``, ``samples/``."""

    path: Path

    def resume_point(self, resume: str, say: Callable[[str], None]) -> Path | None:
        """The checkpoint to continue from, or None for a fresh start.

        Every file of it is hashed here, so the main process asks for all, and :meth:`TrainingState.restore` only reads.

        Args:
            resume: ``auto``, ``never``, or the path of a checkpoint or of a run folder.

        Raises:
            UserError: ``never`` in a folder that has checkpoints, a path without one, or only damaged ones.
        """
        if resume == "auto":
            found = find_resumable(self.path, lambda message: say(f"warning: {message}"))
            if found is None:
                say(f"{self.path} holds no checkpoint: starting from scratch")
            return found
        if resume == "never":
            if list_checkpoints(self.path):
                raise UserError(
                    f"{self.path}: holds checkpoints and --resume is never; nothing is overwritten, so choose another "
                    "training.output_dir or delete the folder"
                )
            return None
        require_reachable(Path(resume), f"--resume {resume}")
        named = run_or_checkpoint(Path(resume))
        if named.is_file() and (named.parent / MANIFEST).is_file():  # a set of tensors: a run needs all of them
            named = named.parent
        if list_checkpoints(named):
            return find_resumable(named, lambda message: say(f"warning: {message}"))
        if not named.is_dir():
            problem = "is a file of no checkpoint" if named.exists() else "there is no such folder"
            raise UserError(f"--resume {resume}: {problem}; give auto, never, or a checkpoint folder")
        require_intact(named)
        return named

    def open(self, config: Config, environment: dict[str, Any]) -> None:
        """Create the folder and record config and environment (:func:`environment_record`)."""
        with writing(f"training.output_dir {self.path}"):
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
            with complete_or_absent(self.path / "config.yaml") as temporary:
                save_config(config, temporary)
            write_json(self.path / "environment.json", environment)

    def lock(self, say: Callable[[str], None]) -> None:
        """Take the folder for this process until it ends, however it ends: the lock is the kernel's.

        Args:
            say: told what the file system cannot do, and what that leaves to the user.

        Raises:
            UserError: another process has it, or the folder cannot be written.
        """
        with writing(f"training.output_dir {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            # Never closed: that would give the lock back.
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            problem = _lock_problem(descriptor)
            if problem == IN_USE:
                os.close(descriptor)
                raise UserError(
                    f"training.output_dir {self.path}: in use by {holder or 'another process'}; stop that run or "
                    "choose another folder"
                )
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            without_flush = flush(self.path)
        if problem:
            last = f" (the last was {holder})" if holder else ""
            say(
                f"warning: training.output_dir {self.path}: this file system has no locks ({problem}), so nothing "
                f"keeps a second run out of the folder: see that no other works in it{last}"
            )
        if without_flush:
            say(
                f"warning: training.output_dir {self.path}: this file system cannot flush a folder ({without_flush}): "
                "after a crash of the machine or its storage, not of the run, the newest checkpoint may be missing"
            )

    def mark_preempted(self, step: int) -> None:
        """Leave a note for scripts that start runs again."""
        with contextlib.suppress(OSError):  # the step is saved, and the exit status says the same
            write_json(self.path / PREEMPTED, {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def clear_preempted(self) -> bool:
        """Remove that note; whether there was one."""
        found = (self.path / PREEMPTED).exists()
        (self.path / PREEMPTED).unlink(missing_ok=True)
        return found

    def set_aside_after(self, step: int, say: Callable[[str], None]) -> None:
        """Rename checkpoints newer than the step that a run continues from: ``auto`` must not return to them."""
        for path in list_checkpoints(self.path):
            if int(path.name.removeprefix("step_")) > step:
                target = path.with_name(f"abandoned_{path.name}_{time.time_ns()}")
                path.rename(target)
                say(f"set aside {target}: newer than step {step}, where this run continues")

    def changes(self, checkpoint: Checkpoint, config: Config) -> Iterator[str]:
        """Each key whose value differs from the checkpoint's config. A key newer than that had its default value."""
        before, now = _flat(_with_defaults(checkpoint.state["config"])), _flat(as_plain(config))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                yield f"{key} was {before.get(key)}, is {now.get(key)}"


def _lock_problem(descriptor: int) -> str | None:
    """None once this process has the lock, ``IN_USE`` if another has it, or why there can be none.

    Raises:
        OSError: anything else.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them depends on the system
        return IN_USE
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return storage_reason(error)
    return None


def _with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """A recorded config with the defaults of the keys that it lacks; as it is if it has others than there are now."""
    try:
        return as_plain(config_from_plain(recorded, "the checkpoint"))
    except UserError:
        return recorded


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
