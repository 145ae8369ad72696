"""What a user may get wrong: a command line, what lies on disk, and the line that must be printed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.launch import ROOT

DIGITS = str(ROOT / "configs" / "digits.yaml")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command line and the one line that it is refused with.

    Texts may name ``{tmp}``, the test's folder, and ``{run}``, the folder of a finished run that nobody may change.

    Attributes:
        message: the whole line, without ``error: ``; sizes of disks read SIZE. Where it ends in ``...``, a library's
            own words follow.
        arguments: of the command; for training the overrides.
        yaml: a config that takes the place of the digits'.
        prepare: puts things into the test's folder.
        continues: training starts in ``{tmp}/run`` on a copy of the finished run.
        resume: training's ``--resume``.
    """

    message: str
    arguments: tuple[str, ...] = ()
    yaml: str | None = None
    prepare: Callable[[Path], object] | None = None
    continues: bool = False
    resume: str = "auto"


def each(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """Runs a test for each case, under its name."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


def png(mode: str = "L", side: int = 8, colour: Any = 7) -> bytes:
    """A square PNG of one colour."""
    stream = io.BytesIO()
    Image.new(mode, (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def write_set(folder: Path, images: list[bytes | None], labels: list[int] | None = None, column: str = "label") -> Path:
    """A Parquet set of one file in ``folder``/set; label i is i modulo 10 unless given."""
    (folder / "set").mkdir()
    file = folder / "set" / "train-00000-of-00001.parquet"
    table = {"image": pa.array(images, pa.binary()), column: labels or [i % 10 for i in range(len(images))]}
    pq.write_table(pa.table(table), file)
    return file


def write_file(name: str, content: bytes) -> Callable[[Path], None]:
    """Puts a file of that content into the test's folder."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def flip_a_bit(file: Path, place: int = -1) -> None:
    """Changes one bit of the byte at that place."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def cut_off(file: Path, count: int) -> None:
    """Takes the last ``count`` bytes away."""
    file.write_bytes(file.read_bytes()[:-count])


class MakesFolder:
    """When unpickled, makes the folder ``hacked``: a file with code in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder / "hacked"),)


def write_pickle(folder: Path) -> None:
    """A PyTorch file, ``w.pt``, that holds such code."""
    torch.save({"weight": torch.zeros(1), "payload": MakesFolder(folder)}, folder / "w.pt")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
LFS_MESSAGE = "this is a Git LFS pointer, not the file itself; run `git lfs pull` there"
HTML = b"<!DOCTYPE html><html>Sign in</html>"
HTML_MESSAGE = "this is a web page (a login or error page was saved); log in and download the file again"
