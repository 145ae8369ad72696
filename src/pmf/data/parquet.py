"""Images in Parquet files, laid out as Hugging Face does for ImageNet; read with pyarrow, row group by row group.

Not through ``datasets.load_dataset``: it would first rewrite all 140 GB of ImageNet as Arrow files.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pmf.data.options import DataConfig
from pmf.data.parquet_files import find_files
from pmf.data.source import CorruptImage, Sample, label_error, prepare
from pmf.errors import UserError
from pmf.files import foreign_content

# Parsing a footer again costs about a millisecond; an open file costs a descriptor and the parsed footer.
OPEN_FILES = 16


@dataclass(frozen=True)
class RowGroup:
    """Where a row group stands: number of its file, its number there, and its rows' numbers in the file."""

    file: int
    number: int
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class _Row:
    image: bytes | None
    label: int | None


class ParquetSource:
    """Rows of ``data.path``/data/SPLIT-*.parquet, in the order of file names. Only footers are read at start.

    Raises:
        UserError: for a path, file or column that is missing, files of more than one data set, a file that is not
            Parquet, and an empty set.
    """

    warnings = ()

    def __init__(self, config: DataConfig, _seed: int = 0) -> None:
        self.config = config
        self.files = find_files(config)
        self.class_names: tuple[str, ...] = ()
        self.row_groups = [group for number in range(len(self.files)) for group in self._scan(number)]
        sizes = np.array([group.num_rows for group in self.row_groups], np.int64)
        self._block_ends = np.cumsum(sizes)
        self.block_starts = self._block_ends - sizes
        if not len(self):
            raise UserError(f"{config.path}: the {len(self.files)} Parquet files have no rows; check the download")
        # Opened lazily, so that each worker has its own handles.
        self._handles: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __len__(self) -> int:
        return int(self._block_ends[-1]) if len(self._block_ends) else 0

    def samples(self, indices: np.ndarray) -> Iterator[Sample | CorruptImage]:
        """See :class:`pmf.data.source.Source`. Each row group is read once and only rows still to come are kept."""
        groups = np.searchsorted(self._block_ends, indices, side="right")
        by_group = np.argsort(groups, kind="stable")
        present, firsts = np.unique(groups[by_group], return_index=True)
        wanted = dict(zip(present.tolist(), np.split(indices[by_group], firsts[1:])))
        held: dict[int, _Row] = {}
        for index, group in zip(indices.tolist(), groups.tolist()):
            if index not in held:
                held.update(self.read_rows(group, wanted.pop(group)))
            yield self._prepare(held.pop(index), self._where(group, index))

    def read_rows(self, group: int, indices: np.ndarray) -> dict[int, _Row]:
        """Encoded images and labels of ``indices``, all of which lie in row group number ``group``.

        Raises:
            UserError: naming the file, where reading fails.
        """
        place = self.row_groups[group]
        try:
            handle = self._open(place.file)
            image_leaf = _image_leaf(handle.schema_arrow, self.config.image_column)
            columns = [image_leaf, self.config.label_column]
            table = handle.read_row_group(place.number, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.files[place.file], error) from None
        rows = table.take(pa.array(indices - self.block_starts[group]))
        images = rows[self.config.image_column]
        if pa.types.is_struct(images.type):
            leaf = images.type.field("bytes").type
            images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks], leaf)
        labels = rows[self.config.label_column].to_pylist()
        return dict(zip(indices.tolist(), map(_Row, images.to_pylist(), labels)))

    def _scan(self, number: int) -> Iterator[RowGroup]:
        path = self.files[number]
        try:
            with pq.ParquetFile(path) as file:
                footer, schema = file.metadata, file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from None
        _check_columns(path, schema, self.config)
        _check_labels(path, footer, self.config)
        self.class_names = self.class_names or _recorded_classes(footer, self.config.label_column)
        first_row = 0
        for group in range(footer.num_row_groups):
            num_rows = footer.row_group(group).num_rows
            if num_rows:
                yield RowGroup(number, group, first_row, num_rows)
            first_row += num_rows

    def _open(self, number: int) -> pq.ParquetFile:
        if number in self._handles:
            self._handles.move_to_end(number)
        else:
            if len(self._handles) == OPEN_FILES:
                self._handles.popitem(last=False)[1].close()
            self._handles[number] = pq.ParquetFile(self.files[number], pre_buffer=False)
        return self._handles[number]

    def _prepare(self, row: _Row, where: str) -> Sample | CorruptImage:
        if row.label is None:
            raise UserError(f"{where}: column {self.config.label_column} is null here; every row needs a label")
        return prepare(row.image, row.label, self.config, where)

    def _where(self, group: int, index: int) -> str:
        place = self.row_groups[group]
        return f"{self.files[place.file]}, row {place.first_row + index - int(self.block_starts[group])}"


def _image_leaf(schema: pa.Schema, column: str) -> str:
    """The physical column with the bytes: of a struct {bytes, path} the path is never read."""
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def _check_columns(path: str, schema: pa.Schema, config: DataConfig) -> None:
    for key, column in (("image_column", config.image_column), ("label_column", config.label_column)):
        if column not in schema.names:
            raise UserError(
                f"{path}: there is no column {column!r} (data.{key}); columns there: {', '.join(schema.names)}"
            )
        if (count := schema.names.count(column)) > 1:
            raise UserError(
                f"{path}: {count} columns are named {column!r} (data.{key}), so which is meant cannot be told; write "
                "the file again with names that differ"
            )
    kind = schema.field(config.image_column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{path}: column {config.image_column!r} (data.image_column) is {kind}; "
            "it must hold encoded images as binary or as struct<bytes: binary, path: string>"
        )
    kind = schema.field(config.label_column).type
    if not pa.types.is_integer(kind):
        raise UserError(f"{path}: column {config.label_column!r} (data.label_column) is {kind}; it must hold integers")


def _check_labels(path: str, footer: pq.FileMetaData, config: DataConfig) -> None:
    """What the footer tells of the labels: their number as Hugging Face records it, and their range."""
    recorded = _recorded_classes(footer, config.label_column)
    if recorded and len(recorded) != config.num_classes:
        raise UserError(
            f"{path}: column {config.label_column!r} has {len(recorded)} classes but data.num_classes is "
            f"{config.num_classes}; set data.num_classes={len(recorded)}, or choose another data.label_column"
        )
    leaves = [footer.schema.column(leaf).path for leaf in range(footer.num_columns)]
    column = leaves.index(config.label_column)
    for group in range(footer.num_row_groups):
        statistics = footer.row_group(group).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            continue
        for label in (statistics.min, statistics.max):
            if not 0 <= label < config.num_classes:
                raise label_error(f"{path}, row group {group}", label, config)


def _recorded_classes(footer: pq.FileMetaData, column: str) -> tuple[str, ...]:
    """Names of a ClassLabel column, from the metadata that the ``datasets`` library writes; () if it did not."""
    try:
        feature = json.loads((footer.metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(map(str, feature["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _unreadable(path: str, error: Exception) -> UserError:
    """Why a file cannot be read, judged by its first and last bytes, and how to get the real one."""
    again = "download it again, e.g. with `hf download REPO --repo-type dataset`"
    try:
        foreign = foreign_content(path)
        with Path(path).open("rb") as file:
            head = file.read(8)
            file.seek(-min(4, os.path.getsize(path)), os.SEEK_END)
            tail = file.read(4)
    except OSError as reason:
        return UserError(f"{path}: this file cannot be read: {reason.strerror}")
    if foreign:
        return UserError(f"{path}: {foreign}")
    if not head.startswith(b"PAR1"):
        return UserError(f"{path}: this is not a Parquet file, it starts with {head!r}; correct data.path")
    if tail != b"PAR1":
        return UserError(f"{path}: this Parquet file is truncated (no footer at its end); {again}")
    return UserError(f"{path}: this Parquet file is damaged: {' '.join(str(error).split())}; {again}")
