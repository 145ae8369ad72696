"""What options are made of: sections, numbers within bounds, pairs, paths, lists of files. Needs no torch."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationInfo

from pmf.errors import UserError

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
INT = re.compile(r"[-+]?[0-9]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Section(BaseModel):
    """A section of the config: frozen, keyword-only, no unknown keys, no silent conversion of strings to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @classmethod
    def alternatives(cls) -> list[type[Section]]:
        """The sections that can stand where this one is declared."""
        return [cls]


def number_name(value: Any) -> Any:
    """A number as file names have it: ``500`` for 500 and 500.0, ``0.9999`` for 0.9999; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)


RECORDED = {"recorded": True}
"""Validation context of a config that a checkpoint records: its paths were expanded when the run began."""


def expanded(path: str, info: ValidationInfo) -> str:
    """A path with its variables replaced, unless a checkpoint recorded it."""
    return path if info.context == RECORDED else expand_path(path)


def one_or_more(value: Any) -> Any:
    """The value of an option that takes a list: a single string counts as a list of one."""
    return [value] if isinstance(value, str) else value


def whole_number(value: Any) -> Any:
    """A number that people may write as 1e5, as an int. Other floats stay floats, which the option then refuses."""
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


def number(text: str) -> int | float:
    """The number that a text stands for; the text matches ``INT`` or ``FLOAT``."""
    return int(text) if INT.fullmatch(text) else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def expand_path(text: str) -> str:
    """A path that a user gave, with a leading ``~``, ``$NAME`` and ``${NAME}`` replaced; URLs stay as they are.

    A relative path stays relative: to the working directory.

    Raises:
        UserError: it is empty, or names a variable or a user that is not there. Begins with a verb: the caller says
            what the path is for.
    """
    if not text.strip():
        raise UserError("is empty; write a path")
    if "://" in text:
        return text
    if strange := re.search(r"\$[({].*", _VARIABLE.sub("", text)):
        raise UserError(f"holds {strange[0]}, which only a shell understands; use $NAME, ${{NAME}} or write the value")
    expanded = os.path.expanduser(expand_variables(text, _VARIABLE))
    if expanded.startswith("~"):
        name = expanded.partition("/")[0]
        raise UserError(f"begins with {name}, whose home folder is not known; write it out (./{name} if it is a name)")
    return expanded


def expand_variables(text: str, pattern: re.Pattern[str]) -> str:
    """Text with the environment's values in place of each match; its last non-empty group is the variable's name.

    Raises:
        UserError: a variable is not set, or empty, which would make another path of it.
    """

    def value(match: re.Match[str]) -> str:
        name = match[match.lastindex or 0]
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise UserError(f"uses {match[0]}, which is {state}; export it or write the value")
        return os.environ[name]

    return pattern.sub(value, text)
