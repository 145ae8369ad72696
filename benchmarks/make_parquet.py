"""Write a synthetic image set in the Parquet layout of Hugging Face's ImageNet, of mixed sizes, formats and modes."""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Encoding:
    """How an image is stored."""

    mode: str
    format: str


# As in ImageNet nearly all are RGB JPEGs; one in ten is something else.
USUAL = Encoding("RGB", "JPEG")
UNUSUAL = (
    Encoding("L", "JPEG"),
    Encoding("CMYK", "JPEG"),
    Encoding("RGBA", "PNG"),
    Encoding("P", "PNG"),
)


def write_image_set(
    folder: Path,
    num_images: int,
    *,
    num_files: int = 4,
    rows_per_group: int = 100,
    short_sides: tuple[int, int] = (300, 500),
    num_classes: int = 1000,
    seed: int = 0,
) -> None:
    """Write ``folder``/data/train-*.parquet; label of row i is i modulo ``num_classes``.

    ``short_sides`` are the least and the greatest short side in pixels; aspect ratios lie in 3:4 ... 16:9.
    """
    generator = np.random.default_rng(seed)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, num_images, num_files + 1).astype(int)
    for number in range(num_files):
        rows = range(bounds[number], bounds[number + 1])
        images = [{"bytes": make_image(generator, i, short_sides), "path": f"{i:08d}.JPEG"} for i in rows]
        table = pa.table({"image": pa.array(images, IMAGE_TYPE), "label": [i % num_classes for i in rows]})
        path = folder / "data" / f"train-{number:05d}-of-{num_files:05d}.parquet"
        pq.write_table(table, path, row_group_size=rows_per_group)


def make_image(generator: np.random.Generator, index: int, short_sides: tuple[int, int]) -> bytes:
    """One encoded image: blurred and fine noise, so that a JPEG is about as large as a photograph's."""
    short = int(generator.integers(*short_sides, endpoint=True))
    width, height = short, max(1, round(short * generator.uniform(0.75, 16 / 9)))
    if generator.random() < 0.6:
        width, height = height, width
    coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).resize((width, height))
    fine = generator.integers(-16, 17, (height, width, 3), np.int16)
    pixels = np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)
    encoding = UNUSUAL[index // 10 % len(UNUSUAL)] if index % 10 == 9 else USUAL
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(encoding.mode).save(stream, encoding.format)
    return stream.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--num-files", type=int, default=4)
    arguments = parser.parse_args()
    write_image_set(arguments.output, arguments.num_images, num_files=arguments.num_files)


if __name__ == "__main__":
    main()
