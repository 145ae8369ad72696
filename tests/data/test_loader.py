import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pmf.data.loader import Batch, create_loader, worker_context
from pmf.data.options import DataConfig
from pmf.data.source import create_source
from pmf.errors import UserError
from tests.data.batches import BATCH, load

"""12 steps an epoch, and a drop of 12, on the 300 images of image_set."""


def assert_same(actual: list[Batch], expected: list[Batch]) -> None:
    assert [batch.step for batch in actual] == [batch.step for batch in expected]
    for a, b in zip(actual, expected):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


def joined(batches: list[Batch]) -> list[Batch]:
    """One batch per step."""
    steps = sorted({batch.step for batch in batches})
    parts = [[batch for batch in batches if batch.step == step] for step in steps]
    return [
        Batch(*(torch.cat([getattr(b, name) for b in part]) for name in ("images", "labels", "indices")), part[0].step)
        for part in parts
    ]


@pytest.fixture
def config(image_config: DataConfig) -> DataConfig:
    return image_config.model_copy(update={"horizontal_flip": True})


@pytest.fixture
def reference(config: DataConfig) -> list[Batch]:
    return load(config)


def test_batches_hold_what_their_indices_say(config: DataConfig, reference: list[Batch]) -> None:
    assert [batch.step for batch in reference] == list(range(30))
    plain = {}
    source = create_source(config, 0)
    for index, sample in enumerate(source.samples(np.arange(300))):
        plain[index] = torch.from_numpy(sample.image)
    flipped = 0
    for batch in reference:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (BATCH, 3, 16, 16)
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert torch.equal(batch.labels, batch.indices)
        for image, index in zip(batch.images, batch.indices.tolist()):
            is_flipped = not torch.equal(image, plain[index])
            flipped += is_flipped
            assert torch.equal(image, plain[index].flip(-1) if is_flipped else plain[index])
    assert 0.4 < flipped / (30 * BATCH) < 0.6
    for epoch in range(2):
        seen = torch.cat([batch.indices for batch in reference[epoch * 12 : epoch * 12 + 12]])
        assert len(seen.unique()) == 12 * BATCH


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(config: DataConfig, reference: list[Batch], workers: int) -> None:
    parallel = config.model_copy(update={"num_workers": workers})
    assert_same(load(parallel), reference)
    # 35 micro-batches: the workers end at different times, and accumulation straddles them.
    assert_same(joined(load(parallel, micro_batch_size=8, start_step=7, num_steps=5)), reference[7:12])


@pytest.mark.parametrize("micro", [1, 3, 6])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_and_micro_batches_change_nothing(
    config: DataConfig, reference: list[Batch], world: int, micro: int
) -> None:
    ranks = [load(config, world_size=world, rank=r, micro_batch_size=micro, num_steps=14) for r in range(world)]
    assert {len(batch.labels) for rank in ranks for batch in rank} == {micro}
    for rank in ranks:
        assert [batch.step for batch in rank] == np.repeat(np.arange(14), BATCH // world // micro).tolist()
    assert_same(joined([batch for rank in ranks for batch in rank]), reference[:14])


@pytest.mark.parametrize("start", [1, 11, 12, 17])
def test_resuming_continues_the_same_stream(config: DataConfig, reference: list[Batch], start: int) -> None:
    assert_same(load(config, start_step=start, num_steps=30 - start), reference[start:])


def test_the_global_generator_of_torch_is_left_alone(config: DataConfig) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load(config.model_copy(update={"num_workers": 1}), num_steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_set_in_row_groups_passes_through_the_loader(tmp_path: Path) -> None:
    """20,000 rows: the order by lanes, with one grey pixel value per label."""
    images = []
    for value in range(10):
        Image.new("L", (1, 1), value).save(tmp_path / "pixel.png")
        images.append((tmp_path / "pixel.png").read_bytes())
    labels = [i % 10 for i in range(20_000)]
    table = pa.table({"image": [images[label] for label in labels], "label": labels})
    pq.write_table(table, tmp_path / "train-0.parquet", row_group_size=100)
    config = DataConfig(path=str(tmp_path), image_size=1, channels=1, num_classes=10, num_workers=2)
    steps = 20_000 // 512
    halves = [
        load(config, global_batch_size=512, micro_batch_size=128, world_size=2, rank=rank, num_steps=steps)
        for rank in range(2)
    ]
    seen = [torch.cat([batch.indices for batch in half]) for half in halves]
    assert len(torch.cat(seen).unique()) == steps * 512
    for half in halves:
        for batch in half:
            assert torch.equal(batch.labels, batch.indices % 10)
            assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
    shared = set((seen[0] // 100).tolist()) & set((seen[1] // 100).tolist())
    assert len(shared) < 20


def test_sizes_are_checked(config: DataConfig) -> None:
    with pytest.raises(UserError, match="global_batch_size is 301, but the data set has only 300 images"):
        load(config, global_batch_size=301, micro_batch_size=301)
    with pytest.raises(ValueError, match="does not divide global_batch_size=24"):
        load(config, micro_batch_size=5)


@pytest.mark.gpu
def test_batches_are_pinned_where_there_is_cuda(config: DataConfig) -> None:
    for batch in load(config.model_copy(update={"num_workers": 1}), num_steps=2):
        assert batch.images.is_pinned()
        assert batch.labels.is_pinned()
        assert batch.indices.is_pinned()


def load_endlessly(connection: Connection) -> None:
    """A training process; sends the process id of its one worker after the first batch."""
    config = DataConfig(kind="synthetic", image_size=8, num_workers=1)
    settings = {"seed": 0, "global_batch_size": 8, "micro_batch_size": 8, "rank": 0, "world_size": 1, "start_step": 0}
    for batch in create_loader(create_source(config, 0), config, num_steps=10**9, **settings):
        if batch.step == 0:
            connection.send(multiprocessing.active_children()[0].pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_ignore_ctrl_c_and_die_with_their_parent() -> None:
    context = worker_context()
    receiver, sender = context.Pipe(duplex=False)
    parent = context.Process(target=load_endlessly, args=(sender,))
    parent.start()
    worker = receiver.recv()
    os.kill(worker, signal.SIGINT)
    time.sleep(0.3)
    assert is_running(worker)
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 15
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(worker)
