"""All batches of a loader, as a training process takes them."""

from __future__ import annotations

from pmf.data.loader import Batch, create_loader
from pmf.data.options import DataConfig
from pmf.data.source import create_source

BATCH = 24


def load(config: DataConfig, **arguments: int) -> list[Batch]:
    settings = {
        "seed": 3,
        "global_batch_size": BATCH,
        "micro_batch_size": BATCH,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 30,
        **arguments,
    }
    return list(create_loader(create_source(config, settings["seed"]), config, **settings))
