"""Which files are images: one rule, whoever lists them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmf.data.image_files import EXTENSIONS, LeftOut, is_image_name, list_deep, list_flat
from pmf.data.options import DataConfig
from pmf.data.source import create_source
from pmf.data.transforms import FORMATS, decode
from pmf.errors import UserError
from pmf.evaluation.image_sets import FlatFolder

GOOD = ("a.jpg", "b.JPG", "c.JPEG", "d.png", "e.PNG", "f.WebP", "g.jfif", "h.Tif", "i.bmp", "k.ppm")
HIDDEN = ("._a.jpg", ".DS_Store", ".hidden.png", ".000007.png.4711")
OTHER = ("notes.txt", "a.jpg.part", "png", "x.npz", "z.pfm")


def write_image(path: Path, value: int = 100) -> None:
    extension = path.suffix.lower()
    Image.new("RGB", (8, 8), (value,) * 3).save(path, Image.registered_extensions()[extension])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of everything that has been seen among images."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in GOOD:
        write_image(folder / name)
    for name in (*HIDDEN, *OTHER):
        (folder / name).write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    for name in ("labels.csv", "sampling.json"):  # ours
        (folder / name).write_text("{}")
    (folder / "l.jpg").symlink_to("a.jpg")
    (folder / "broken.jpg").symlink_to("/nonexistent/x.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the names of sockets must be short
        listener.bind("socket.jpg")
        os.chdir(here)
    for name in ("folder.jpg", "__MACOSX", "@eaDir"):
        (folder / name).mkdir()
        write_image(folder / name / "inner.png")
    return folder


def test_every_user_of_the_rule_finds_the_same(mixed: Path) -> None:
    wanted = [*GOOD, "l.jpg"]
    left_out = LeftOut()
    assert list_flat(mixed, left_out) == wanted
    counts = {
        "hidden names": len(HIDDEN) + 2,
        "names of no file, as broken links are": 4,
        "files without the ending of an image": len(OTHER),
        "folders": 1,
    }
    (told,) = left_out.warnings(mixed)
    assert told.startswith(f"{mixed}: left out are ")
    for reason, count in counts.items():
        assert f"{reason}: {count} (first " in told

    measured = FlatFolder(mixed)
    assert measured.names == wanted
    assert measured.warnings[0].split(" (first")[0] == told.split(" (first")[0]
    assert len(list(measured.read(np.arange(len(measured))))) == len(wanted)

    source = create_source(DataConfig(kind="imagefolder", path=str(mixed.parent), image_size=8, num_classes=1), 0)
    # In depth: a folder may have any name, and what is in it counts by its own.
    assert [str(source.path(index).relative_to(mixed)) for index in range(len(source))] == sorted(
        [*wanted, "folder.jpg/inner.png"]
    )
    assert len(list(source.samples(np.arange(len(source))))) == len(wanted) + 1
    (told,) = source.warnings
    for reason in set(counts) - {"folders"}:
        assert f"{reason}: {counts[reason]}" in told
    assert not any("notes.txt" in name for name in measured.names)


def test_endings_are_those_of_the_formats_that_are_decoded(tmp_path: Path) -> None:
    known = {ending for ending, format in Image.registered_extensions().items() if format in FORMATS}
    assert set(EXTENSIONS) == known - {".pfm"}  # floats
    for ending in EXTENSIONS:
        assert is_image_name(f"x{ending}")
        assert is_image_name(f"x{ending.upper()}")
        assert not is_image_name(f"._x{ending}")
        write_image(tmp_path / f"x{ending}", 40)
        assert decode((tmp_path / f"x{ending}").read_bytes(), 1, 4).mean() == pytest.approx(40, abs=1)  # lossy ones


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    for name in ("a", "b", "elsewhere"):
        (tmp_path / "set" / name).mkdir(parents=True)
        write_image(tmp_path / "set" / name / "0.png")
    (tmp_path / "set" / "elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "to_root").symlink_to("..")
    (tmp_path / "set" / "a" / "to_parent_of_root").symlink_to("../..")
    (tmp_path / "set" / "a" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set" / "a")  # a circle over a folder outside
    left_out = LeftOut()
    assert list_deep(tmp_path / "set", "a", left_out) == ["a/0.png", "a/out/0.png"]
    assert "links to a folder that they stand in: 3" in str(left_out)
    source = create_source(DataConfig(kind="imagefolder", path=str(tmp_path / "set"), image_size=8, num_classes=2), 0)
    assert [sample.label for sample in source.samples(np.arange(len(source)))] == [0, 0, 1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(UserError, match="a: this folder cannot be read: Permission denied"):
        list_deep(tmp_path, "a", LeftOut())


def test_nothing_is_said_where_everything_is_used(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").touch()
    assert FlatFolder(tmp_path).warnings == []
