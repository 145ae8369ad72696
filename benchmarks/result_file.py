"""The file of a benchmark: rewritten after every measurement, so that whatever ends the process, none is lost."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pmf.errors import UserError
from pmf.files import complete_or_absent

T = TypeVar("T")


class ResultFile:
    """A dictionary and the JSON file that always holds all of it.

    Attributes:
        path: of the file; None keeps the results in memory only.
        content: what the file holds.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any]) -> None:
        """Write the head: a place that cannot be written to is found before anything is measured.

        Raises:
            UserError: it cannot be written.
        """
        self.path = path
        self.content: dict[str, Any] = dict(head)
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.write()
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None

    def add(self, **values: Any) -> None:
        """Set some of the content, and rewrite the file."""
        self.content |= values
        self.write()

    def attempt(self, name: str, measure: Callable[[], T]) -> T | None:
        """What ``measure`` returns; if it raises, None, and ``failures`` says why: the next measurement can follow."""
        try:
            return measure()
        except Exception as error:
            traceback.print_exc()
            self.add(failures={**self.failures, name: one_line(error)})
            return None

    @property
    def failures(self) -> dict[str, str]:
        """What failed so far, and why."""
        return self.content.get("failures", {})

    def write(self) -> None:
        """Replace the file as a whole."""
        if self.path is not None:
            with complete_or_absent(self.path) as temporary:
                temporary.write_text(json.dumps(self.content, indent=1) + "\n")


def one_line(error: BaseException) -> str:
    """Type and first line of the message, 300 characters at most."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:300]


def unused_path(folder: Path, *parts: str) -> Path:
    """``PART-PART.json``, with a number after it where there is such a file: earlier results stay."""
    stem = "-".join(re.sub(r"[^a-z0-9_]+", "-", part.lower()).strip("-") for part in parts)
    number, path = 1, folder / f"{stem}.json"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path
