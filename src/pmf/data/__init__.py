"""Data sets, the order of their images, and the loader that hands them to a rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pmf.config import DataConfig
from pmf.data.loader import Batch, Loader, create_loader
from pmf.data.sampler import steps_per_epoch
from pmf.data.source import Sample, Source
from pmf.data.synthetic import SyntheticSource
from pmf.data.transforms import center_crop, decode, to_unit_range
from pmf.storage import require_reachable

__all__ = [
    "SOURCES",
    "Batch",
    "Loader",
    "Sample",
    "Source",
    "center_crop",
    "create_loader",
    "create_source",
    "decode",
    "steps_per_epoch",
    "to_unit_range",
]


def _parquet(config: DataConfig, _: int) -> Source:
    from pmf.data.parquet import ParquetSource  # only here: it brings pyarrow

    return ParquetSource(config)


def _imagefolder(config: DataConfig, _: int) -> Source:
    from pmf.data.imagefolder import ImageFolderSource

    return ImageFolderSource(config)


def _digits(config: DataConfig, _: int) -> Source:
    from pmf.data.digits import open_digits

    return open_digits(config)


# A new kind of data set is a line here and one in config.DataConfig.kind.
SOURCES: dict[str, Callable[[DataConfig, int], Source]] = {
    "parquet": _parquet,
    "imagefolder": _imagefolder,
    "synthetic": SyntheticSource,
    "digits": _digits,
}


def create_source(config: DataConfig, seed: int) -> Source:
    """Open the data set that ``data.kind`` names; ``seed`` shapes the synthetic one only.

    Raises:
        UserError: one line, for anything missing or unsuitable; see the source's own file.
    """
    if config.path:
        require_reachable(Path(config.path), f"{config.path}: data.path")
    return SOURCES[config.kind](config, seed)
