from pathlib import Path

import pytest

from benchmarks.make_parquet import write_image_set
from pmf.data.options import DataConfig


@pytest.fixture(scope="session")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 small images of mixed modes in 3 files and 30 row groups; the label is the index modulo 1000."""
    folder = tmp_path_factory.mktemp("image_set")
    write_image_set(folder, 300, num_files=3, rows_per_group=10, short_sides=(20, 60))
    return folder


@pytest.fixture
def image_config(image_set: Path) -> DataConfig:
    return DataConfig(path=str(image_set), image_size=16, num_workers=0)
