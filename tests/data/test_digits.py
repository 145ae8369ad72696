from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from pmf.data.digits import FILE, write_digits
from pmf.data.loader import worker_context
from pmf.data.options import DataConfig
from pmf.data.source import create_source


def digits_config(path: Path | None, **fields: object) -> DataConfig:
    values = {"kind": "digits", "path": path and str(path), "image_size": 8, "channels": 1, "num_classes": 10}
    return DataConfig.model_validate({**values, **fields})


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    source = create_source(digits_config(tmp_path), 0)
    assert len(source) == 1797
    samples = list(source.samples(np.arange(1797)))
    expected = load_digits()
    images = np.stack([sample.image for sample in samples])
    assert images.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(images[:, 0], np.rint(expected.images * 255 / 16))
    np.testing.assert_array_equal([sample.label for sample in samples], expected.target)
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    file = pq.ParquetFile(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert file.metadata.num_rows == 1797
    assert file.schema_arrow.names == ["image", "label"]


def test_digits_are_written_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    create_source(digits_config(None), 0)
    file = tmp_path / "pmf" / "digits" / "data" / "train-00000-of-00001.parquet"
    written = file.stat().st_mtime_ns
    sample = next(create_source(digits_config(None, image_size=16), 0).samples(np.array([5])))
    assert file.stat().st_mtime_ns == written
    assert sample.image.shape == (1, 16, 16)


def test_two_processes_at_once_leave_a_good_set(tmp_path: Path) -> None:
    processes = [worker_context().Process(target=write_digits, args=(tmp_path / FILE,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(create_source(digits_config(tmp_path), 0)) == 1797
    assert len(list((tmp_path / "data").iterdir())) == 1
