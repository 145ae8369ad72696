"""What is said of a sampling option where it is declared, besides its type: what it is for, and names of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Use(Enum):
    """What a sampling option is for; one that is not marked decides what the images of given weights look like."""

    IMAGES = auto()
    WEIGHTS = auto()
    """Which weights make the images."""
    BATCHES = auto()
    """How many images are made at a time; they are the same up to rounding."""
    TRAINING = auto()
    """What a training run writes by itself; no option of eval.py."""


@dataclass(frozen=True)
class PartNames:
    """Names for the parts of an option that holds several values; columns of tables and words in help texts."""

    names: tuple[str, ...]


def options_for(section: type[BaseModel], *uses: Use) -> dict[str, FieldInfo]:
    """The options of a section for one of these uses, by name, as they are declared."""
    return {name: option for name, option in section.model_fields.items() if use_of(option) in uses}


def use_of(option: FieldInfo) -> Use:
    """What an option is for."""
    return next((mark for mark in option.metadata if isinstance(mark, Use)), Use.IMAGES)


def columns_of(name: str, option: FieldInfo) -> tuple[str, ...]:
    """What an option's value is called in a table: its name, or the names of its parts."""
    return next((mark.names for mark in option.metadata if isinstance(mark, PartNames)), (name,))
