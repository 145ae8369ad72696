"""Which Parquet files make up a data set: all of one set, and of one set only."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict

from pmf.data.options import DataConfig
from pmf.data.source import first_names
from pmf.errors import UserError

# train-00007-of-00294.parquet, and as the Hugging Face hub writes it, train-00007-of-00294-0a1b2c3d4e5f6789.parquet.
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<total>\d+)(-\w+)?\.parquet")


def find_files(config: DataConfig) -> list[str]:
    """The Parquet files of ``data.path``: a folder (of SPLIT-*.parquet, or with them in data/), a file or a glob.

    Returns:
        Paths sorted by name, at least one.

    Raises:
        UserError: no files, naming the patterns tried and what is there instead; a set that is not complete; files of
            two sets.
    """
    path = config.path or ""
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        patterns = _patterns(path, f"{glob.escape(config.split)}-*.parquet")
    elif glob.has_magic(path):
        patterns = [path]
    else:
        raise UserError(f"{path}: data.path does not exist; give the folder that holds data/{config.split}-*.parquet")
    found = {pattern: files for pattern in patterns if (files := _matching(pattern))}
    if not found:
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        raise UserError(
            f"{path}: no Parquet files match {' or '.join(patterns)}; {_what_is_there(folder)}; "
            "correct data.path or data.split"
        )
    if len(found) > 1:
        raise UserError(
            f"{path}: there are files both of {' and of '.join(found)}; move one set away, or give data.path as a "
            "glob of those wanted"
        )
    (files,) = found.values()
    _require_one_set(files)
    if os.path.isdir(path):  # a glob may choose some of the files, or several sets, on purpose
        _require_nothing_else(files)
        _require_complete(files)
    return files


def holds_parquet(folder: str, split: str | None) -> bool:
    """Whether a folder, or data/ in it, has Parquet files: of a split, or any."""
    name = "*.parquet" if split is None else f"{glob.escape(split)}-*.parquet"
    return any(_matching(pattern) for pattern in _patterns(folder, name))


def _patterns(folder: str, name: str) -> list[str]:
    return [os.path.join(glob.escape(folder), "data", name), os.path.join(glob.escape(folder), name)]


def _matching(pattern: str) -> list[str]:
    """Files sorted by name; hidden ones, folders and broken links do not count."""
    return [name for name in sorted(glob.glob(pattern)) if os.path.isfile(name)]


def _shards(files: list[str]) -> dict[tuple[str, str], dict[int, list[str]]]:
    """(name before the numbers, total as written) to number of a shard to its files."""
    shards: dict[tuple[str, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        if match := SHARD.fullmatch(file):
            shards[match["stem"], match["total"]][int(match["number"])].append(file)
    return shards


def _require_one_set(files: list[str]) -> None:
    """Shards of one name have one total, and each of them is there once."""
    totals: dict[str, str] = {}
    for (stem, total), numbers in _shards(files).items():
        if stem in totals:
            raise UserError(
                f"{stem}-*.parquet: these are files of two data sets, one of {int(totals[stem])} and one of "
                f"{int(total)} files (-of-{totals[stem]} and -of-{total}); move one away, or give data.path as a glob "
                "of those wanted"
            )
        totals[stem] = total
        twice = next((names for _, names in sorted(numbers.items()) if len(names) > 1), None)
        if twice:
            raise UserError(
                f"{twice[0]}: {os.path.basename(twice[1])} has the same number of {int(total)}, so these are files of "
                "two data sets; move one away, or give data.path as a glob of those wanted"
            )


def _require_nothing_else(files: list[str]) -> None:
    """All have one name and are numbered in one way."""
    shards = _shards(files)
    plain = [file for file in files if not SHARD.fullmatch(file)]
    kinds = [f"{stem}-*-of-{total}.parquet" for stem, total in shards] + plain[:1]
    if shards and len(kinds) > 1:
        raise UserError(
            f"{kinds[0]}: beside these files is {os.path.basename(kinds[1])}, so there is more than one data set; move "
            "one away, or give data.path as a glob of those wanted"
        )


def _require_complete(files: list[str]) -> None:
    """SPLIT-00007-of-00294.parquet says how many files there are."""
    for (stem, total), numbers in _shards(files).items():
        if beyond := sorted(set(numbers) - set(range(int(total)))):
            raise UserError(
                f"{numbers[beyond[0]][0]}: has number {beyond[0]} of {int(total)} files, which are numbered from 0; "
                "correct its name or move it away"
            )
        if missing := sorted(set(range(int(total))) - set(numbers)):
            raise UserError(
                f"{stem}-{missing[0]:0{len(total)}d}-of-{total}.parquet: this file is missing, and of the {int(total)} "
                f"files only {len(numbers)} are there; finish the download, or give data.path as a glob of those wanted"
            )


def _what_is_there(folder: str) -> str:
    there = [name for sub in ("", "data") for name in sorted(glob.glob(os.path.join(sub, "*"), root_dir=folder))]
    return f"{folder or '.'} holds {first_names(there)}"
