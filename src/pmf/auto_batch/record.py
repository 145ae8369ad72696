"""The answer in the config, the config as it was beside it, and a note of how the answer came about."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pmf.auto_batch.search import Measurement
from pmf.config.edit import write_exactly
from pmf.files import complete_or_absent


@dataclass(frozen=True, kw_only=True)
class Record:
    """How an answer came about.

    Attributes:
        estimated: nothing ran.
        device_memory: bytes, where the user gave a limit.
        rows: everything that was tried, by size.
    """

    estimated: bool
    processes: int
    device_memory: int | None
    rows: Mapping[int, Measurement]


def write_back(path: Path, before: str, after: str, record: Record) -> Iterator[str]:
    """Keep ``before`` under a name of its own, replace the config by ``after``, and write the note.

    Returns:
        Lines that say what was written.
    """
    if after != before:
        backup = path.with_name(f"{path.name}.{_sha256(before)[:8]}.bak")
        with complete_or_absent(backup) as temporary:
            temporary.write_bytes(before.encode())
        write_exactly(path, after)
        yield f"wrote {path}; as it was: {backup}"
    note = path.with_name(f"{path.name}.auto_batch.json")
    with complete_or_absent(note) as temporary:
        temporary.write_text(json.dumps(_note(after, record), indent=1) + "\n")
    yield f"how it was found: {note}"


def _note(config: str, record: Record) -> dict[str, object]:
    on_gpu = torch.cuda.is_available()
    return {
        "command": sys.argv,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config_sha256": _sha256(config),
        "hardware": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "processes": record.processes,
        "device_memory": record.device_memory,
        "how": "estimated for a device that is not here" if record.estimated else "measured",
        "sizes": [asdict(row) for _, row in sorted(record.rows.items())],
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
