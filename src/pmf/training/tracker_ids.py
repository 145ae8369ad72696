"""Under which id a run is known to a tracker: made once, kept in the run folder, so that a resume goes on in it."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path

from pmf.files import complete_or_absent, storage_reason
from pmf.training.trackers import TrackedRun


def kept_id(run: TrackedRun, file_name: str, given: str | None = None) -> str:
    """The id that a file of the run folder keeps, made at its first use.

    A copy of a run folder is another run: it gets an id of its own as long as the original is there.

    Args:
        file_name: of the file, which is the tracker's own.
        given: what the user asks for instead; it is kept from then on.
    """
    file, here = run.folder / file_name, str(run.folder.absolute())
    kept, folder = _read(file)
    if file.exists() and kept is None:
        run.warn(f"{file} holds no run id; this becomes a new run there")
    if kept is not None and folder != here and _is_copy(file, Path(folder) / file_name):
        run.warn(f"{here} is a copy of {folder}; this becomes a new run there")
        kept = None
    run_id = given or kept or secrets.token_hex(4)
    if (run_id, here) != (kept, folder):
        try:
            with complete_or_absent(file) as temporary:
                temporary.write_text(json.dumps({"id": run_id, "folder": here}))
        except OSError as error:
            run.warn(f"{file}: cannot be written ({storage_reason(error)}); a resume will be a new run there")
    return run_id


def _read(file: Path) -> tuple[str | None, str]:
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
    return _read(file)[0] == _read(original)[0] and not original.samefile(file)
