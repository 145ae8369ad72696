"""Images that cannot be decoded: which stand in for them, what is said, and when it is too many."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pmf.data.loader import Batch, create_loader
from pmf.data.options import DataConfig
from pmf.data.source import create_source, require_first_images
from pmf.errors import UserError

NUM_IMAGES = 40
CORRUPT = {5: b"junk", 6: None, 17: "truncated", 39: b""}
STAND_IN = {5: 7, 6: 7, 17: 18, 39: 0}


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Image i is grey of value i and has label i; four of forty are corrupt."""
    images = [png(i) for i in range(NUM_IMAGES)]
    for index, content in CORRUPT.items():
        images[index] = images[index][:-20] if content == "truncated" else content
    table = pa.table({"image": pa.array(images, pa.binary()), "label": range(NUM_IMAGES)})
    pq.write_table(table, tmp_path / "train-0.parquet", row_group_size=10)
    return DataConfig(
        path=str(tmp_path),
        image_size=4,
        channels=1,
        num_classes=NUM_IMAGES,
        num_workers=0,
        max_corrupt_fraction=0.1,
    )


def load(config: DataConfig, warned: list[str] | None = None, **arguments: int) -> list[Batch]:
    settings = {
        "seed": 1,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 10,
        **arguments,
    }
    warn = (warned if warned is not None else []).append
    return list(create_loader(create_source(config, 0), config, warn=warn, **settings))


def test_the_next_good_image_stands_in_label_included(config: DataConfig) -> None:
    batches = load(config)
    indices = torch.cat([batch.indices for batch in batches])
    expected = torch.tensor([STAND_IN.get(index, index) for index in indices.tolist()])
    assert torch.equal(torch.cat([batch.labels for batch in batches]), expected)
    assert torch.equal(torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).long(), expected)
    assert sorted(indices.tolist()) == sorted([*range(NUM_IMAGES)] * 2)


def test_every_corrupt_image_is_named_once_in_order(config: DataConfig) -> None:
    warned: list[str] = []
    batches = load(config, warned)
    order = [index for batch in batches for index in batch.indices.tolist() if index in CORRUPT]
    assert len(order) == 8  # two passes
    formats = "not one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"
    reason = {5: formats, 6: "there are no image bytes, only null", 17: "image file is truncated", 39: formats}
    assert warned == [
        f"warning: {config.path}/train-0.parquet, row {index}: this image cannot be decoded: {reason[index]}; "
        f"another stands in for it (number {number} of at most 4)"
        for number, index in enumerate(order[:4], start=1)
    ]
    named = [image.where for batch in batches for image in batch.corrupt]
    assert named == [f"{config.path}/train-0.parquet, row {index}" for index in order]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_neither_images_nor_warnings(config: DataConfig, workers: int) -> None:
    expected_lines: list[str] = []
    expected = load(config, expected_lines)
    lines: list[str] = []
    actual = load(config.model_copy(update={"num_workers": workers}), lines)
    assert lines == expected_lines
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.indices, b.indices)
        assert a.corrupt == b.corrupt


def test_ranks_and_a_resume_change_no_image(config: DataConfig) -> None:
    whole = torch.cat([batch.images for batch in load(config)])
    half = torch.cat([batch.images for batch in load(config, start_step=5, num_steps=5)])
    assert torch.equal(half, whole[40:])
    ranks = [load(config, rank=rank, world_size=2) for rank in (0, 1)]
    both = torch.cat([batch.images for pair in zip(*ranks, strict=True) for batch in pair])
    assert torch.equal(both, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_more_than_the_share_ends_the_run(config: DataConfig, workers: int) -> None:
    strict = config.model_copy(update={"max_corrupt_fraction": 0.05, "num_workers": workers})
    warned: list[str] = []
    with pytest.raises(UserError) as caught:
        load(strict, warned)
    assert len(warned) == 2
    assert str(caught.value).startswith(f"{config.path}/train-0.parquet, row ")
    assert str(caught.value).endswith(
        "; it is corrupt image number 3 and data.max_corrupt_fraction allows 2; download the files again or raise it"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_where_nothing_can_stand_in_the_run_ends(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "train-0.parquet"
    pq.write_table(pa.table({"image": [b"junk"] * 8, "label": [0] * 8}), file)
    config = DataConfig(path=str(file), num_workers=workers, max_corrupt_fraction=1.0)
    with pytest.raises(UserError) as caught:
        load(config)
    assert str(caught.value).startswith(f"{file}, row ")
    assert str(caught.value).endswith("; nor can any of the 7 after it; download the files again")


def test_the_first_images_show_a_wrong_column_at_once(config: DataConfig, tmp_path: Path) -> None:
    require_first_images(create_source(config, 0))  # two of eight are corrupt, which the rate judges
    file = tmp_path / "other-0.parquet"
    pq.write_table(pa.table({"image": [b"mask"] * 8, "label": [0] * 8}), file)
    source = create_source(config.model_copy(update={"path": str(file)}), 0)
    with pytest.raises(UserError) as caught:
        require_first_images(source)
    assert str(caught.value) == (
        f"{file}, row 0: this image cannot be decoded: not one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM; nor can the 7 "
        "after it; check data.path (and data.image_column of Parquet files), or download the files again"
    )


def test_a_missing_file_of_a_set_is_named(tmp_path: Path) -> None:
    for number in (0, 2, 3):
        table = pa.table({"image": [png(number)], "label": [number]})
        pq.write_table(table, tmp_path / f"train-{number:05d}-of-00005.parquet")
    config = DataConfig(path=str(tmp_path), num_classes=4)
    with pytest.raises(UserError) as caught:
        create_source(config, 0)
    assert str(caught.value) == (
        f"{tmp_path}/train-00001-of-00005.parquet: this file is missing, and of the 5 files only 3 are there; finish "
        "the download, or give data.path as a glob of those wanted"
    )
    chosen = create_source(config.model_copy(update={"path": f"{tmp_path}/train-*.parquet"}), 0)
    assert len(chosen) == 3


@pytest.mark.parametrize(("label", "hint"), [(-1, " (the labels of this split are not published?)"), (12, "")])
def test_labels_out_of_range_are_found_in_the_footer(tmp_path: Path, label: int, hint: str) -> None:
    file = tmp_path / "train-0.parquet"
    # Nested columns come first: the footer numbers leaves, not columns.
    images = pa.array([{"bytes": png(0), "path": "x"}] * 8)
    table = pa.table({"image": images, "label": [0] * 7 + [label]})
    pq.write_table(table, file, row_group_size=4)
    with pytest.raises(UserError) as caught:
        create_source(DataConfig(path=str(file), num_classes=10), 0)
    assert str(caught.value) == (
        f"{file}, row group 1: label {label} is outside 0 ... 9{hint}; "
        "correct data.num_classes, data.label_column or data.split"
    )


def test_the_number_of_classes_is_compared_with_the_recorded_one(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee", "cat"]))
    rows = {"image": [{"bytes": png(0), "path": None}] * 3, "label": [0, 1, 2]}
    file = tmp_path / "train-0.parquet"
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    assert len(create_source(DataConfig(path=str(file), num_classes=3), 0)) == 3
    with pytest.raises(UserError) as caught:
        create_source(DataConfig(path=str(file), num_classes=1000), 0)
    assert str(caught.value) == (
        f"{file}: column 'label' has 3 classes but data.num_classes is 1000; set data.num_classes=3, or choose another "
        "data.label_column"
    )


def test_row_groups_that_vanish_while_training_are_named(config: DataConfig) -> None:
    source = create_source(config, 0)
    file = Path(config.path or "") / "train-0.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train-0\.parquet: this Parquet file is truncated"):
        list(source.samples(np.arange(3)))
