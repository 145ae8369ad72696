"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, as a Parquet set on disk: real data without a download."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from pmf.data.options import DataConfig
from pmf.data.parquet import ParquetSource
from pmf.errors import UserError
from pmf.files import complete_or_absent, storage_advice, storage_reason

FILE = "data/train-00000-of-00001.parquet"


def open_digits(config: DataConfig, _seed: int = 0) -> ParquetSource:
    """The digits in ``data.path``, or else in ``$XDG_CACHE_HOME``/pmf/digits; written there at first use.

    Raises:
        UserError: nothing can be written there.
    """
    file = _folder(config) / FILE
    if not file.exists():
        try:
            write_digits(file)
        except OSError as error:
            advice = storage_advice(error, "set data.path")
            raise UserError(f"{file}: cannot write the digits here ({storage_reason(error)}); {advice}") from None
    return ParquetSource(
        config.model_copy(update={"path": str(file), "image_column": "image", "label_column": "label"})
    )


def write_digits(file: Path) -> None:
    """Write the set as one Parquet file in the layout of Hugging Face's ImageNet; it is complete or absent.

    Processes that write it at the same time each put an equal file into place.

    Raises:
        OSError: where nothing can be written.
    """
    # Both take seconds to import, and are needed once per machine.
    import datasets
    from sklearn.datasets import load_digits

    datasets.disable_progress_bars()
    digits = load_digits()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[str(i) for i in range(10)]))
    # The scans count 0 ... 16 dark pixels in squares of 4 x 4.
    images = [{"bytes": _png(np.rint(scan * (255 / 16)).astype(np.uint8)), "path": None} for scan in digits.images]
    table = datasets.Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)
    file.parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(file, by_several=True) as temporary, temporary.open("wb") as stream:
        table.to_parquet(stream)


def _folder(config: DataConfig) -> Path:
    if config.path:
        return Path(config.path)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "pmf" / "digits"


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
