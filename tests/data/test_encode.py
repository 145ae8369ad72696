"""python -m pmf.data.encode: the same bytes from Parquet and folders, on any number of processes, whatever happens."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pmf.data.encoding import Encoding
from pmf.data.encoding_parts import read_parts
from pmf.data.latent_shards import INDEX, REQUEST, describe_shard, read_index
from pmf.data.options import DataConfig
from pmf.data.parquet import ParquetSource
from pmf.data.source import create_source
from pmf.errors import UserError
from pmf.files import file_sha256
from tests.latents import FLAGS, NUM_CLASSES, SETTINGS, SIZE, contents, jpeg_config, latent_config
from tests.launch import Script, run_command, started


def command(data: Path, autoencoder: Path, output: Path, *flags: str) -> tuple[str, ...]:
    size = ("--image-size", str(SIZE), "--num-classes", str(NUM_CLASSES), "--mirror")
    places = ("--data-path", str(data), "--autoencoder", str(autoencoder), "--output", str(output))
    return ("pmf.data.encode", *places, *size, *FLAGS, *flags)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory, jpegs) -> Path:
    """The same files, in the same order, as Parquet with other column names."""
    folder = tmp_path_factory.mktemp("parquet")
    files = sorted(jpegs.rglob("*.jpg"))
    table = {"picture": [file.read_bytes() for file in files], "kind": [int(file.parent.name[-1]) for file in files]}
    pq.write_table(pa.table(table), folder / "val-00000-of-00001.parquet", row_group_size=30)
    return folder


def test_two_processes_on_parquet_give_the_bytes_of_one_on_a_folder(parquet, autoencoder, encoded, tmp_path):
    columns = ("--split", "val", "--image-column", "picture", "--label-column", "kind")
    done = run_command(*command(parquet, autoencoder, tmp_path / "latents", *columns), ranks=2)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/latents: 200 images in 9 shards" in done.stdout
    assert "200/200" in done.stderr
    assert contents(tmp_path / "latents") == contents(encoded())


def test_killed_and_started_again_on_another_number_of_processes(jpegs, autoencoder, encoded, tmp_path):
    """kill -9 of both processes once two shards are there, a temporary file cut off, then one process."""
    output = tmp_path / "latents"
    arguments = command(jpegs, autoencoder, output, "--kind", "imagefolder")
    with started(Script(arguments[0], arguments[1:]), tmp_path / "printed", ranks=2) as run:
        run.wait_until(lambda: len(list(output.glob("latents-*"))) >= 2)
        for rank in range(2):
            run.signal(signal.SIGKILL, rank)
        assert run.wait() == [-signal.SIGKILL] * 2
    there = sorted(file.name for file in output.glob("latents-*"))
    assert 2 <= len(there) < 9
    assert not (output / INDEX).exists()
    assert (output / REQUEST).exists()
    wanted = contents(encoded())
    assert all((output / name).read_bytes() == wanted[name] for name in there)
    (output / ".incomplete_host_1_latents-00008.safetensors").write_bytes(wanted["latents-00008.safetensors"][:100])
    times = {name: (output / name).stat().st_mtime_ns for name in there}

    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert {name: (output / name).stat().st_mtime_ns for name in there} == times  # skipped, and not written again
    assert contents(output) == wanted
    again = run_command(*arguments)
    assert again.stdout == f"{output}: is encoded already; nothing to do\n"


def test_a_shard_that_was_removed_is_made_again(jpegs, autoencoder, encoded, tmp_path):
    def encode() -> None:
        Encoding(jpeg_config(jpegs, autoencoder), tmp_path / "latents", dtype="float16", mirror=True, **SETTINGS).run()

    encode()
    (tmp_path / "latents" / "latents-00003.safetensors").unlink()
    record = tmp_path / "latents" / REQUEST
    request = json.loads(record.read_text())
    assert request.pop("resampling") == "pillow"
    record.write_text(json.dumps(request))  # as it was before there was a choice
    encode()
    record.write_text(json.dumps({**request, "resampling": "pillow"}))
    assert contents(tmp_path / "latents") == contents(encoded("float16"))
    other = jpeg_config(jpegs, autoencoder).model_copy(update={"resampling": "torch"})
    with pytest.raises(UserError, match=r"\(resampling is pillow there, torch here\)"):
        Encoding(other, tmp_path / "latents", dtype="float16", mirror=True, **SETTINGS).run()


def test_the_index_describes_the_set(encoded, autoencoder):
    folder = encoded("float16")
    index = json.loads((folder / INDEX).read_text())
    assert {key: value for key, value in index.items() if key not in ("shards", "autoencoder")} == {
        "image_size": 32,
        "num_classes": 4,
        "mirrored": True,
        "dtype": "float16",
        "num_images": 200,
        "corrupt": [],
        "class_names": ["class_0", "class_1", "class_2", "class_3"],
    }
    assert index["autoencoder"]["name"] == str(autoencoder)
    assert len(index["autoencoder"]["sha256"]) == 64
    assert [label for shard in index["shards"] for label in shard["labels"]] == [i // 50 for i in range(200)]
    for shard in index["shards"]:
        assert (file_sha256(folder / shard["file"]), (folder / shard["file"]).stat().st_size) == (
            shard["sha256"],
            shard["bytes"],
        )
    # 24 images of 2 x 8 x 4 x 4 halves and a label, and a header.
    assert index["shards"][0]["bytes"] == pytest.approx(24 * (2 * 8 * 16 * 2 + 8), rel=0.05)
    request = json.loads((folder / REQUEST).read_text())
    assert (request["kind"], request["batch_size"], request["shard_size"], request["mirror"]) == (
        "imagefolder",
        8,
        24,
        True,
    )


def test_corrupt_images_are_named_and_left_out(jpegs, autoencoder, encoded, tmp_path, capsys):
    """In the middle of a batch and a whole shard of them; the rest of the set stays as it is."""
    files = sorted(jpegs.rglob("*.jpg"))
    broken = [30, *range(48, 72)]
    for number, file in enumerate(files):
        copy = tmp_path / "jpegs" / file.relative_to(jpegs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes() if number not in broken else b"\xff\xd8\xff no picture")
    data = jpeg_config(tmp_path / "jpegs", autoencoder).model_copy(update={"max_corrupt_fraction": 0.125})
    Encoding(data, tmp_path / "latents", dtype="float32", mirror=True, **SETTINGS).run()
    printed = capsys.readouterr()
    index = read_index(tmp_path / "latents")
    assert index.num_images == 175
    assert index.corrupt == [
        f"{tmp_path}/jpegs/{files[number].relative_to(jpegs)}: this image cannot be decoded: not one of JPEG, PNG, "
        "WEBP, GIF, BMP, TIFF, PPM"
        for number in broken
    ]
    assert all(f"warning: {name}; it is left out" in printed.out + printed.err for name in index.corrupt)
    assert len(index.shards[2].labels) == 0
    shard, corrupt = describe_shard(tmp_path / "latents" / index.shards[1].file)
    assert (len(shard.labels), corrupt) == (23, index.corrupt[:1])
    whole, ours = (create_source(latent_config(folder, autoencoder), 0) for folder in (encoded(), tmp_path / "latents"))
    kept = np.array([number for number in range(200) if number not in broken])
    for mine, theirs in zip(ours.samples(np.arange(175)), whole.samples(kept), strict=True):
        assert mine.label == theirs.label
        # A batch of seven is computed like one of eight, up to the order of sums.
        assert np.allclose(mine.image, theirs.image, rtol=1e-5, atol=1e-5)


class CountingSource(ParquetSource):
    """Records which row groups are read."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.reads: Counter[int] = Counter()

    def read_rows(self, group: int, indices: np.ndarray) -> dict[int, object]:
        self.reads[group] += 1
        return super().read_rows(group, indices)


BATCHES = [(start // 24, np.arange(start, start + 8)) for start in range(0, 200, 8)]


def parquet_set(folder: Path) -> CountingSource:
    columns = {"split": "val", "image_column": "picture", "label_column": "kind"}
    return CountingSource(DataConfig(path=str(folder), image_size=SIZE, num_classes=NUM_CLASSES, **columns))


def test_a_row_group_is_read_once_for_all_its_batches(parquet):
    """Seven groups of 30 images, and 25 batches of 8."""
    source = parquet_set(parquet)
    parts = list(read_parts(source, BATCHES, 0))
    assert source.reads == dict.fromkeys(range(7), 1)
    assert [part.shard for part in parts] == [number for number, _ in BATCHES]
    assert torch.cat([part.labels for part in parts]).tolist() == [i // 50 for i in range(200)]
    assert list(read_parts(source, [], 2)) == []  # of a process that has no shard


def test_what_ends_the_reading_comes_in_the_shard_that_it_is_in(parquet, tmp_path):
    table = pq.read_table(parquet).to_pydict()
    table["kind"][60] = None
    pq.write_table(pa.table(table), tmp_path / "val-00000-of-00001.parquet", row_group_size=30)
    *before, last = read_parts(parquet_set(tmp_path), BATCHES, 0)
    assert [part.shard for part in before] == [0, 0, 0, 1, 1, 1, 2]
    assert (last.shard, type(last.error)) == (2, UserError)
    assert "row 60: column kind is null here" in str(last.error)


def test_workers_change_nothing(jpegs, autoencoder, encoded, tmp_path):
    data = jpeg_config(jpegs, autoencoder).model_copy(update={"num_workers": 2})
    Encoding(data, tmp_path / "latents", dtype="float32", mirror=True, **SETTINGS).run()
    assert contents(tmp_path / "latents") == contents(encoded())


def test_a_cpu_process_computes_with_one_thread(jpegs, autoencoder, tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Encoding(jpeg_config(jpegs, autoencoder), tmp_path / "latents", dtype="float32", mirror=False, **SETTINGS)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
