"""A command that notes what it hashes, reads and builds: python tests/counting_worker.py NOTES SCRIPT ARGUMENTS...

Each note is a line ``KIND RANK BYTES PATH``, where KIND is hash, read (of named tensors) or build (of a network).
"""

import hashlib
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pmf.generation.images
import pmf.tensors

NOTES, SCRIPT, *ARGUMENTS = sys.argv[1:]


def note(kind: str, path: object = "-") -> None:
    size = Path(str(path)).stat().st_size if path != "-" else 0
    with Path(NOTES).open("a") as file:
        file.write(f"{kind} {os.environ.get('RANK', '0')} {size} {path}\n")


def noted(kind: str, function: Callable[..., Any], path_of: Callable[[Any], object]) -> Callable[..., Any]:
    def call(first: Any, *rest: Any, **named: Any) -> Any:
        note(kind, path_of(first))
        return function(first, *rest, **named)

    return call


hashlib.file_digest = noted("hash", hashlib.file_digest, lambda file: file.name)
pmf.tensors.load_file = noted("read", pmf.tensors.load_file, lambda path: path)
pmf.generation.images.network_of = noted("build", pmf.generation.images.network_of, lambda _: "-")

sys.argv = [SCRIPT, *ARGUMENTS]
runpy.run_path(SCRIPT, run_name="__main__")
