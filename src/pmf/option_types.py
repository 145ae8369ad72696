"""The kinds of values that options have: numbers within bounds, pairs, paths, lists of files. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, ValidationInfo

from pmf.files import expand_path


def number_name(value: Any) -> Any:
    """``500`` for 500 and 500.0, ``0.9999`` for 0.9999: numbers as they stand in file names and in YAML."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)


RECORDED = {"recorded": True}
"""Validation context of a config that a checkpoint records: its paths were expanded when the run began."""


def expanded(path: str, info: ValidationInfo) -> str:
    """A path as its user meant it."""
    return path if info.context == RECORDED else expand_path(path)


def one_or_more(value: Any) -> Any:
    """A single string as a list of one."""
    return [value] if isinstance(value, str) else value


def whole_number(value: Any) -> Any:
    """1e5 as 100000: how people write large numbers of steps and images. Other floats stay, to be refused."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(whole_number), Field(le=2**63 - 1)]  # what counters and generators hold
Positive = Annotated[Whole, Field(gt=0)]
NonNegative = Annotated[Whole, Field(ge=0)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]
Decay = Annotated[FiniteFloat, Field(ge=0, lt=1)]
# YAML has lists only; pydantic's strict mode would refuse them as tuples.
Interval = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
Betas = Annotated[tuple[Decay, Decay], Field(strict=False)]
PathText = Annotated[str, AfterValidator(expanded)]
"""A path, or what may be one beside other things (a URL, a name): with ``~`` and the environment's variables."""
Files = Annotated[list[PathText], BeforeValidator(one_or_more), Field(min_length=1)]
