import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmf.data.options import SOURCES, DataConfig
from pmf.data.parquet import OPEN_FILES, ParquetSource
from pmf.data.source import create_source
from pmf.errors import UserError


def parquet_config(path: Path | str, **fields: object) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), "image_size": 8, "num_classes": 10, **fields})


def png(tmp_path: Path, value: int = 100) -> bytes:
    file = tmp_path / f"{value}.png"
    Image.new("RGB", (8, 8), (value, value, value)).save(file)
    return file.read_bytes()


def test_registry_has_every_kind_of_the_config() -> None:
    assert set(SOURCES) == {"parquet", "imagefolder", "synthetic", "digits", "latents"}


class CountingSource(ParquetSource):
    """Records which row groups are read."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.reads: Counter[int] = Counter()

    def read_rows(self, group: int, indices: np.ndarray) -> dict[int, object]:
        self.reads[group] += 1
        return super().read_rows(group, indices)


def test_each_row_group_is_read_once_and_only_if_needed(image_config: DataConfig) -> None:
    source = CountingSource(image_config)
    assert len(source) == 300
    assert source.block_starts.tolist() == list(range(0, 300, 10))
    indices = np.random.default_rng(0).permutation(300)[:150]
    indices = indices[indices >= 20]
    labels = [sample.label for sample in source.samples(indices)]
    assert labels == indices.tolist()
    assert set(source.reads.values()) == {1}
    assert set(source.reads) == set((indices // 10).tolist())


def test_images_do_not_depend_on_the_order_they_are_read_in(image_config: DataConfig) -> None:
    source = create_source(image_config, 0)
    forward = [sample.image for sample in source.samples(np.arange(300))]
    backward = [sample.image for sample in source.samples(np.arange(300)[::-1])]
    for a, b in zip(forward, backward[::-1]):
        np.testing.assert_array_equal(a, b)
    assert len({image.tobytes() for image in forward}) == 300


def test_open_files_are_few_and_stay_at_home(tmp_path: Path) -> None:
    for number in range(OPEN_FILES + 5):
        table = pa.table({"image": [png(tmp_path)], "label": [number % 10]})
        pq.write_table(table, tmp_path / f"train-{number:05d}.parquet")
    source = ParquetSource(parquet_config(tmp_path))
    labels = [sample.label for sample in source.samples(np.arange(len(source)))]
    assert labels == [number % 10 for number in range(OPEN_FILES + 5)]
    assert len(source._handles) == OPEN_FILES
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy._handles) == 0
    assert next(copy.samples(np.array([3]))).label == 3


@pytest.mark.parametrize("layout", ["folder", "file", "glob", "plain", "large"])
def test_layouts(tmp_path: Path, layout: str) -> None:
    binary = pa.large_binary() if layout == "large" else pa.binary()
    images = pa.array([png(tmp_path, value) for value in range(5)], binary)
    struct = pa.StructArray.from_arrays([images, pa.array(["x"] * 5)], ["bytes", "path"])
    column = images if layout == "plain" else struct
    file = tmp_path / "train-00000.parquet"
    pq.write_table(pa.table({"image": column, "label": pa.array(range(5), pa.int32())}), file)
    path = {"file": str(file), "glob": f"{tmp_path}/*.parquet"}.get(layout, str(tmp_path))
    samples = list(create_source(parquet_config(path), 0).samples(np.array([4, 0, 2])))
    assert [sample.label for sample in samples] == [4, 0, 2]
    assert [int(sample.image[0, 0, 0]) for sample in samples] == [4, 0, 2]


@pytest.mark.parametrize(
    ("image", "label", "text"),
    [
        ("good", None, "column label is null here"),
        ("good", 10, "label 10 is outside 0 ... 9"),
        ("good", -1, "label -1 is outside 0 ... 9"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, image: object, label: int | None, text: str) -> None:
    good = png(tmp_path)
    images = pa.array([good] * 7 + [good if image == "good" else image], pa.binary())
    file = tmp_path / "train-0.parquet"
    table = pa.table({"image": images, "label": [0] * 7 + [label]})
    pq.write_table(table, file, row_group_size=3, write_statistics=False)  # with them it would be known at start
    source = create_source(parquet_config(file), 0)
    with pytest.raises(UserError) as caught:
        list(source.samples(np.arange(8)))
    assert str(caught.value).startswith(f"{file}, row 7: ")
    assert text in str(caught.value)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train-0.parquet"
    pq.write_table(pa.table({"image": [png(tmp_path)], "label": [0]}), file)
    source = create_source(parquet_config(file), 0)
    file.unlink()
    with pytest.raises(UserError, match="this file cannot be read: No such file"):
        list(source.samples(np.arange(1)))


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    for label, name in enumerate(["ant", "bee", "cat"]):
        (tmp_path / "set" / name / "deeper").mkdir(parents=True)
        for i in range(label + 1):
            colour = (label * 10 + i,) * 3
            Image.new("RGB", (8, 8), colour).save(tmp_path / "set" / name / f"{i}.PNG")
        (tmp_path / "set" / name / "notes.txt").touch()
    Image.new("RGB", (8, 8), (99, 99, 99)).save(tmp_path / "set" / "ant" / "deeper" / "z.png")
    (tmp_path / "set" / ".ipynb_checkpoints").mkdir()
    return tmp_path / "set"


def folder_config(path: Path, **fields: object) -> DataConfig:
    return parquet_config(path, **{"kind": "imagefolder", "num_classes": 3, **fields})


def test_class_folders_are_sorted_and_searched_in_depth(class_folders: Path) -> None:
    source = create_source(folder_config(class_folders), 0)
    assert source.block_starts is None
    samples = list(source.samples(np.array([6, 0, 1, 2, 3, 4, 5])))
    assert [int(sample.image[0, 0, 0]) for sample in samples] == [22, 0, 99, 10, 11, 20, 21]
    assert [sample.label for sample in samples] == [2, 0, 0, 1, 1, 2, 2]


def test_a_split_folder_is_used_where_there_is_one(class_folders: Path) -> None:
    source = create_source(folder_config(class_folders.parent, split="set"), 0)
    assert len(source) == 7


def test_an_image_that_cannot_be_decoded_is_named(class_folders: Path) -> None:
    (class_folders / "bee" / "0.PNG").write_bytes(b"junk")
    third = list(create_source(folder_config(class_folders), 0).samples(np.arange(7)))[2]
    assert re.fullmatch(r".*/bee/0\.PNG: this image cannot be decoded: not one of JPEG, .*", str(third))


def test_synthetic_images_tell_their_class() -> None:
    config = DataConfig(kind="synthetic", image_size=16, num_classes=4, num_images=40)
    source = create_source(config, 7)
    samples = list(source.samples(np.arange(40)))
    assert [sample.label for sample in samples] == [i % 4 for i in range(40)]
    assert samples[0].image.shape == (3, 16, 16)
    again = next(create_source(config, 7).samples(np.array([13])))
    np.testing.assert_array_equal(again.image, samples[13].image)
    other = next(create_source(config, 8).samples(np.array([13])))
    assert (other.image != samples[13].image).mean() > 0.5
    # The spectrum's magnitude does not see the phase, so that a nearest class mean finds every label.
    spectra = np.abs(np.fft.fft2([sample.image.astype(float) for sample in samples])).reshape(40, -1)
    means = np.stack([spectra[label:20:4].mean(0) for label in range(4)])
    guesses = np.linalg.norm(spectra[20:, None] - means, axis=-1).argmin(-1)
    assert guesses.tolist() == [i % 4 for i in range(20, 40)]
