"""Folders that hold something else than one data set: one line that says what was found, and what to do."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmf.data.options import DataConfig
from pmf.data.source import create_source
from pmf.errors import UserError


def png(value: int = 7) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), value).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(folder: Path, *names: str) -> None:
    """One row in each file."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": [png()], "label": [0]}), folder / name)


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())


def open_set(kind: str, path: Path | str, **fields: object) -> int:
    """Number of images."""
    fields = {"kind": kind, "path": str(path), "image_size": 8, "num_classes": 2, "channels": 1, **fields}
    return len(create_source(DataConfig.model_validate(fields), 0))


def refusal(kind: str, path: Path | str, **fields: object) -> str:
    with pytest.raises(UserError) as error:
        open_set(kind, path, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


GLOB = "or give data.path as a glob of those wanted"
SHARDS = {
    "two totals": (
        ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        "{tmp}/train-*.parquet: these are files of two data sets, one of 1 and one of 2 files (-of-00001 and "
        "-of-00002); move one away, " + GLOB,
    ),
    "two totals with hashes": (
        [
            "data/train-00000-of-00001-3fa1.parquet",
            "data/train-00000-of-00002-77bc.parquet",
            "data/train-00001-of-00002-91de.parquet",
        ],
        "{tmp}/data/train-*.parquet: these are files of two data sets, one of 1 and one of 2 files (-of-00001 and "
        "-of-00002); move one away, " + GLOB,
    ),
    "two totals, one with hashes": (
        ["train-00000-of-00001.parquet", "train-00000-of-00002-77bc.parquet", "train-00001-of-00002-91de.parquet"],
        "{tmp}/train-*.parquet: these are files of two data sets, one of 1 and one of 2 files (-of-00001 and "
        "-of-00002); move one away, " + GLOB,
    ),
    "one total twice": (
        ["train-00000-of-00001.parquet", "train-00000-of-00001-77bc.parquet"],
        "{tmp}/train-00000-of-00001-77bc.parquet: train-00000-of-00001.parquet has the same number of 1, so these are "
        "files of two data sets; move one away, " + GLOB,
    ),
    "incomplete with hashes": (
        ["train-00000-of-00003-77bc.parquet", "train-00002-of-00003-91de.parquet"],
        "{tmp}/train-00001-of-00003.parquet: this file is missing, and of the 3 files only 2 are there; finish the "
        "download, " + GLOB,
    ),
    "beyond the total": (
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "train-00002-of-00002.parquet"],
        "{tmp}/train-00002-of-00002.parquet: has number 2 of 2 files, which are numbered from 0; correct its name or "
        "move it away",
    ),
    "numbered in two ways": (
        ["train-00000-of-00001.parquet", "train-old.parquet"],
        "{tmp}/train-*-of-00001.parquet: beside these files is train-old.parquet, so there is more than one data set; "
        "move one away, " + GLOB,
    ),
    "two names": (
        ["train-00000-of-00001.parquet", "train-clean-00000-of-00001.parquet"],
        "{tmp}/train-*-of-00001.parquet: beside these files is train-clean-*-of-00001.parquet, so there is more than "
        "one data set; move one away, " + GLOB,
    ),
    "in both places": (
        ["train-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"],
        "{tmp}: there are files both of {tmp}/data/train-*.parquet and of {tmp}/train-*.parquet; move one set away, "
        + GLOB,
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_parquet_files_of_more_or_less_than_one_set(name: str, tmp_path: Path) -> None:
    files, message = SHARDS[name]
    write_parquet(tmp_path, *files)
    assert refusal("parquet", tmp_path) == message.replace("{tmp}", str(tmp_path))


def test_a_glob_may_choose_parts_and_several_splits_but_not_two_totals(tmp_path: Path) -> None:
    write_parquet(tmp_path, *(f"train-0000{number}-of-00003-{number}a.parquet" for number in range(3)))
    write_parquet(tmp_path, "validation-00000-of-00001.parquet", "data/unrelated.parquet", "._train-1.parquet")
    assert open_set("parquet", tmp_path) == 3
    assert open_set("parquet", tmp_path, split="validation") == 1
    assert open_set("parquet", f"{tmp_path}/train-*[12]-of-*.parquet") == 2
    assert open_set("parquet", f"{tmp_path}/*.parquet") == 4
    write_parquet(tmp_path, "train-00000-of-00001.parquet")
    assert "two data sets, one of 1 and one of 3 files" in refusal("parquet", f"{tmp_path}/*.parquet")
    assert open_set("parquet", f"{tmp_path}/train-*-of-00003*.parquet") == 3


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_what_is_no_file_is_no_shard(kind: str, tmp_path: Path) -> None:
    write_parquet(tmp_path, "train-00000-of-00002.parquet")
    second = tmp_path / "train-00001-of-00002.parquet"
    second.mkdir() if kind == "folder" else second.symlink_to("/nonexistent")
    assert f"{second}: this file is missing" in refusal("parquet", tmp_path)


SPLITS = {
    "classes below": (["train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"], "validation", "train, val"),
    "images below": (["train/0.png", "test/0.png"], "val", "test, train"),
    "another case": (["Train/a/0.png", "Train/b/0.png", "Val/a/0.png"], "train", "Train, Val"),
    "something beside them": (["train/a/0.png", "val/a/0.png", "devkit/read.me.png"], "test", "train, val"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_not_trained_on_as_classes(name: str, tmp_path: Path) -> None:
    files, split, named = SPLITS[name]
    write_images(tmp_path, *files)
    classes = len({file.split("/")[0] for file in files})
    assert refusal("imagefolder", tmp_path, split=split, num_classes=classes) == (
        f"{tmp_path}: its folders {named} are named like splits and data.split is {split!r}; set data.split to one of "
        "them, or rename them if they are classes"
    )


def test_a_split_that_is_there_is_used(tmp_path: Path) -> None:
    write_images(tmp_path, "train/a/0.png", "train/b/0.png", "train/b/1.png", "val/a/0.png", "val/b/0.png")
    assert open_set("imagefolder", tmp_path, split="train") == 3
    assert open_set("imagefolder", tmp_path, split="val") == 2
    write_images(tmp_path, "devkit/0.png")
    assert open_set("imagefolder", tmp_path, split="train") == 3


def test_classes_that_are_named_like_a_split_are_classes(tmp_path: Path) -> None:
    """COCO has a class train, which is also the default of data.split."""
    write_images(tmp_path, "person/0.png", "person/1.png", "train/0.png", "zebra/deeper/0.png")
    for split in ("train", "val"):
        source = create_source(
            DataConfig(kind="imagefolder", path=str(tmp_path), split=split, image_size=8, num_classes=3), 0
        )
        assert [sample.label for sample in source.samples(np.arange(len(source)))] == [0, 0, 1, 2]


def test_a_folder_of_images_is_one_class_where_one_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_images(folder, "b.png", "a.png", "._a.png")
    for path, split in ((folder, "train"), (tmp_path, "set")):
        data = DataConfig(kind="imagefolder", path=str(path), split=split, image_size=8, num_classes=1)
        source = create_source(data, 0)
        assert [sample.label for sample in source.samples(np.arange(len(source)))] == [0, 0]
        assert source.warnings == [f"{folder}: left out are hidden names: 1 (first ._a.png)"]
    assert refusal("imagefolder", folder) == (
        f"{folder}: there are images (a.png, b.png) but no class folders; move them into one folder per class, or "
        "set data.num_classes to 1 (it is 2) to train on them as one class"
    )
    write_images(folder, "deep/er/c.png", "deep/d.png")  # now there is a class folder, and the others are strays
    assert open_set("imagefolder", folder, num_classes=1) == 2


def test_what_is_left_out_of_a_training_set_is_said(tmp_path: Path) -> None:
    write_images(tmp_path, "a/0.png", "b/0.png", "stray.png", "a/._0.png", "a/x.avif", "__MACOSX/a/._0.png", "c/x.txt")
    source = create_source(DataConfig(kind="imagefolder", path=str(tmp_path), image_size=8, num_classes=3), 0)
    (told,) = source.warnings
    assert told == (
        f"{tmp_path}: left out are class folders without images: 1 (first c), files without the ending of an image: 2 "
        "(first a/x.avif), hidden names: 2 (first __MACOSX), images beside the class folders: 1 (first stray.png)"
    )
