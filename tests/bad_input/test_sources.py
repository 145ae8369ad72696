"""Data sets that are not there, not whole, or not what the config says."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_input.cases import HTML, HTML_MESSAGE, LFS, LFS_MESSAGE, Case, cut_off, each, png, write_file, write_set

PARQUET = ("data.kind=parquet", "data.path={tmp}/set")
FOLDER = ("data.kind=imagefolder", "data.path={tmp}/set")


def write_table(folder: Path, **columns: object) -> None:
    """A Parquet set of one file in ``folder``/set."""
    (folder / "set").mkdir()
    pq.write_table(pa.table(columns), folder / "set" / "train-00000-of-00001.parquet")


CASES = {
    "image size not divisible": Case(
        arguments=("data.image_size=9",),
        message="data.image_size is 9, not a multiple of test_pmf_2's patch size 2; use 8 or 10, or a model with "
        "another patch size",
    ),
    "latents not divisible": Case(
        arguments=("data.kind=latents", "data.path={tmp}", "data.channels=3", "data.image_size=24"),
        message="data.image_size is 24, of which latents have a side of 3, not a multiple of test_pmf_2's patch size "
        "2; use 16 or 32, or a model with another patch size",
    ),
    "other number of classes": Case(
        arguments=("data.num_classes=11",),
        message="command line: data.num_classes=11: "
        "data.num_classes is 11; data.kind digits needs data.num_classes: 10",
    ),
    "missing path": Case(
        arguments=PARQUET,
        message="{tmp}/set: data.path does not exist; give the folder that holds data/train-*.parquet",
    ),
    "empty glob": Case(
        arguments=("data.kind=parquet", "data.path={tmp}/*.parquet"),
        message="{tmp}/*.parquet: no Parquet files match {tmp}/*.parquet; {tmp} holds nothing; correct data.path "
        "or data.split",
    ),
    "truncated Parquet": Case(
        arguments=PARQUET,
        prepare=lambda folder: cut_off(write_set(folder, [png()] * 40), 50),
        message="{tmp}/set/train-00000-of-00001.parquet: this Parquet file is truncated (no footer at its end); "
        "download it again, e.g. with `hf download REPO --repo-type dataset`",
    ),
    "LFS pointer as Parquet": Case(
        arguments=PARQUET,
        prepare=write_file("set/train-0.parquet", LFS),
        message="{tmp}/set/train-0.parquet: " + LFS_MESSAGE,
    ),
    "web page as Parquet": Case(
        arguments=PARQUET,
        prepare=write_file("set/train-0.parquet", HTML),
        message="{tmp}/set/train-0.parquet: " + HTML_MESSAGE,
    ),
    "incomplete download": Case(
        arguments=PARQUET,
        prepare=write_file("set/train-00003-of-00294.parquet", b""),
        message="{tmp}/set/train-00000-of-00294.parquet: this file is missing, and of the 294 files only 1 are "
        "there; finish the download, or give data.path as a glob of those wanted",
    ),
    "wrong column": Case(
        arguments=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 40, column="fine_label"),
        message="{tmp}/set/train-00000-of-00001.parquet: there is no column 'label' (data.label_column); columns "
        "there: image, fine_label",
    ),
    "no images in the column": Case(
        arguments=PARQUET,
        prepare=lambda folder: write_set(folder, [b"junk"] * 40),
        message="{tmp}/set/train-00000-of-00001.parquet, row 0: this image cannot be decoded: not one of JPEG, "
        "PNG, WEBP, GIF, BMP, TIFF, PPM; nor can the 7 after it; check data.path (and data.image_column "
        "of Parquet files), or download the files again",
    ),
    "too many corrupt images": Case(
        arguments=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 20 + [png()[:-30]] * 20),
        message="{tmp}/set/train-00000-of-00001.parquet, row 27: this image cannot be decoded: image file is "
        "truncated; it is corrupt image number 1 and data.max_corrupt_fraction allows 0; "
        "download the files again or raise it",
    ),
    "fewer images than a batch": Case(
        arguments=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 15),
        message="training.global_batch_size is 16, but the data set has only 15 images; set it to 15 or less",
    ),
    "label out of range": Case(
        arguments=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 40, [10] * 40),
        message="{tmp}/set/train-00000-of-00001.parquet, row group 0: label 10 is outside 0 ... 9; correct "
        "data.num_classes, data.label_column or data.split",
    ),
    "label -1": Case(
        arguments=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 40, [-1] * 40),
        message="{tmp}/set/train-00000-of-00001.parquet, row group 0: label -1 is outside 0 ... 9 (the labels of "
        "this split are not published?); correct data.num_classes, data.label_column or data.split",
    ),
    "another split": Case(
        arguments=PARQUET,
        prepare=write_file("set/data/validation-0.parquet", b""),
        message="{tmp}/set: no Parquet files match {tmp}/set/data/train-*.parquet or "
        "{tmp}/set/train-*.parquet; {tmp}/set holds data, data/validation-0.parquet; correct data.path or "
        "data.split",
    ),
    "empty Parquet": Case(
        arguments=PARQUET,
        prepare=write_file("set/train-0.parquet", b""),
        message="{tmp}/set/train-0.parquet: this file is empty (0 bytes); download it again",
    ),
    "PNG as Parquet": Case(
        arguments=PARQUET,
        prepare=write_file("set/train-0.parquet", b"\x89PNG...."),
        message="{tmp}/set/train-0.parquet: this is not a Parquet file, it starts with "
        "b'\\x89PNG....'; correct data.path",
    ),
    "damaged Parquet": Case(
        arguments=PARQUET,
        prepare=write_file("set/train-0.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        message="{tmp}/set/train-0.parquet: this Parquet file is damaged: ...",
    ),
    "text for images": Case(
        arguments=(*PARQUET, "data.image_column=text"),
        prepare=lambda folder: write_table(folder, image=[png()], text=["a"], label=[1]),
        message="{tmp}/set/train-00000-of-00001.parquet: column 'text' (data.image_column) is string; "
        "it must hold encoded images as binary or as struct<bytes: binary, path: string>",
    ),
    "text for labels": Case(
        arguments=(*PARQUET, "data.label_column=text"),
        prepare=lambda folder: write_table(folder, image=[png()], text=["a"], label=[1]),
        message="{tmp}/set/train-00000-of-00001.parquet: column 'text' (data.label_column) is string; "
        "it must hold integers",
    ),
    "no rows": Case(
        arguments=PARQUET,
        prepare=lambda folder: write_table(folder, image=pa.array([], pa.binary()), label=pa.array([], pa.int64())),
        message="{tmp}/set: the 1 Parquet files have no rows; check the download",
    ),
    "digits in colour": Case(
        arguments=("data.channels=3",),
        message="command line: data.channels=3: data.channels is 3; data.kind digits needs data.channels: 1",
    ),
    "digits of another split": Case(
        arguments=("data.split=test",),
        message="command line: data.split=test: data.split is test; data.kind digits needs data.split: train",
    ),
    "digits that cannot be written": Case(
        arguments=("data.path={tmp}/set",),
        prepare=write_file("set/data", b"a file where the folder should be"),
        message="{tmp}/set/data/train-00000-of-00001.parquet: cannot write the digits here (File "
        "exists); set data.path",
    ),
    "no class folders": Case(
        arguments=FOLDER,
        message="{tmp}/set: data.path does not exist; give the folder that holds one folder per class",
    ),
    "other number of class folders": Case(
        arguments=FOLDER,
        prepare=lambda folder: [write_file(f"set/{name}/0.png", png())(folder) for name in ("ant", "bee", "cat")],
        message="{tmp}/set: there are 3 class folders (ant, bee, cat) but data.num_classes is 10; "
        "correct one of them, or data.path",
    ),
    "class folders without images": Case(
        arguments=(*FOLDER, "data.num_classes=1"),
        prepare=write_file("set/a/notes.txt", b""),
        message="{tmp}/set: the 1 class folders hold no images; known endings: .jpg, .jpeg, .jpe, .jfif, .png, "
        ".apng, .webp, .gif, .bmp, .tif, .tiff, .ppm, .pgm, .pbm, .pnm",
    ),
}


@each(CASES)
def test_train(case, training_refused):
    assert training_refused(case) == case.message
