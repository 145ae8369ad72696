"""Tables of names: what a config can choose by name, and where each choice is defined. Needs no torch.

A row is the object itself or, so that reading a config imports nothing, ``"package.module:name"``. Tables are plain
dictionaries: a program that uses the library can add a row before it reads a config.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

Row = str | Callable[..., Any]


def find_row(table: Mapping[str, Row], name: str) -> Any:
    """The object that the row of this name stands for."""
    return resolve(table[name])


def resolve(row: Row) -> Any:
    """The object that a row stands for; its module is imported now, if it was not before."""
    if not isinstance(row, str):
        return row
    module, _, name = row.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, slots=True)
class OneOf(BeforeValidator):
    """The mark of :func:`one_of`: checks a name, and knows which there are."""

    table: Mapping[str, Any] = field(default_factory=dict)


def one_of(table: Mapping[str, Any]) -> OneOf:
    """For the annotation of an option: its value is a name in the table, as the table is then."""

    def check(name: Any) -> Any:
        if not isinstance(name, str) or name not in table:
            raise PydanticKnownError("literal_error", {"expected": names_in(table)})
        return name

    return OneOf(check, table=table)


def names_in(table: Mapping[str, Any]) -> str:
    """The names of a table, for the message of pydantic's ``literal_error``."""
    *others, last = (f"'{known}'" for known in table)
    return f"{', '.join(others)} or {last}" if others else last
