"""A kind of data set that the library does not have is a source and a row: checked, opened, trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pmf.config.inputs import require_inputs
from pmf.config.yaml_file import load_config
from pmf.data.loader import create_loader
from pmf.data.options import SOURCES, DataConfig, DataKind
from pmf.data.source import Sample, create_source
from pmf.errors import UserError

SECTION = """
data: {{kind: stripes, path: {path}, channels: 1, num_classes: 4, image_size: 8}}
training: {{max_steps: 1}}
"""


class Stripes:
    """Image i has i dark rows, and the label i modulo 4."""

    block_starts = None
    warnings = ()

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.count = len((Path(config.path or "") / "list.txt").read_text().split())

    def __len__(self) -> int:
        return self.count

    def samples(self, indices: np.ndarray) -> Iterator[Sample]:
        for index in indices.tolist():
            image = np.full((1, 8, 8), 255, np.uint8)
            image[:, :index] = 0
            yield Sample(image, index % 4)


@pytest.fixture
def stripes(monkeypatch, tmp_path) -> Path:
    """The row, and the folder of a set of eight."""
    kind = DataKind(source=Stripes, folder_holds="list.txt for {split}", fixed={"channels": 1})
    monkeypatch.setitem(SOURCES, "stripes", kind)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "list.txt").write_text("1\n" * 8)
    return tmp_path / "set"


def test_a_kind_is_refused_until_its_row_is_there(tmp_path):
    (tmp_path / "run.yaml").write_text(SECTION.format(path=tmp_path))
    known = "'parquet', 'imagefolder', 'synthetic', 'digits' or 'latents'"
    with pytest.raises(UserError, match=f"'stripes': input should be {known}"):
        load_config(tmp_path / "run.yaml")


def test_its_batches_hold_its_images(stripes, tmp_path):
    (tmp_path / "run.yaml").write_text(SECTION.format(path=stripes))
    data = load_config(tmp_path / "run.yaml", ["data.num_workers=0"]).data
    source = create_source(data, 0)
    settings = {"global_batch_size": 4, "micro_batch_size": 2, "rank": 0, "world_size": 1}
    batches = list(create_loader(source, data, seed=0, start_step=0, num_steps=2, **settings))
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(8))
    for batch in batches:
        dark_rows = (batch.images[:, 0, :, 0] == 0).sum(1)
        assert dark_rows.tolist() == batch.indices.tolist()
        assert batch.labels.tolist() == [index % 4 for index in batch.indices.tolist()]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=null", "data.path is missing; data.kind stripes needs the folder of the data set"),
        ("data.channels=3", "data.channels is 3; data.kind stripes needs data.channels: 1"),
    ],
)
def test_what_its_row_demands_is_checked_with_the_config(stripes, tmp_path, override, message):
    (tmp_path / "run.yaml").write_text(SECTION.format(path=stripes))
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "run.yaml", [override])


def test_a_folder_that_is_not_there_is_known_before_its_module_is_imported(stripes, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "stripes", DataKind(source="nowhere:Stripes", folder_holds="list.txt for {split}"))
    (tmp_path / "run.yaml").write_text(SECTION.format(path=f"{stripes}/none"))
    config = load_config(tmp_path / "run.yaml", ["model.name=pmf_tiny_2"])
    with pytest.raises(UserError) as caught:
        require_inputs(config, "auto")
    assert str(caught.value) == (
        f"{stripes}/none: data.path does not exist; give the folder that holds list.txt for train"
    )
