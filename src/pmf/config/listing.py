"""Every option of the config as ``--help`` tells it: key, what it takes, default, sentence; and what shells complete.

All of it is read off the declarations.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pmf.config.overrides import described, find_option, sections, written
from pmf.config.sections import Config
from pmf.flow.objective import OBJECTIVES
from pmf.net.sizes import SIZES
from pmf.options import Section, expanded
from pmf.tables import OneOf

WIDTH = 80
# Options whose values are the names of a table, which is not said where they are declared.
_TABLES: Mapping[str, Mapping[str, Any]] = {"objective.name": OBJECTIVES, "model.name": SIZES}
_BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
_LARGEST = 2**63 - 1  # what counters hold; nobody asks


def option_listing() -> str:
    """All options, section by section, in lines of at most 80 columns, but for URLs that are longer."""
    lines: list[str] = []
    for section, kinds in _sections().items():
        declared = next(kind for kind in kinds[0].__mro__ if Section in kind.__bases__)
        lines += ["", *_wrapped(f"{section}: {_sentence(declared.__doc__)}", 0)]
        for name in dict.fromkeys(name for kind in kinds for name in kind.model_fields):
            having = [kind for kind in kinds if name in kind.model_fields]
            lines += _entry(f"{section}.{name}", name, having, everywhere=len(having) == len(kinds))
    return "\n".join(lines[1:])


def option_sentences() -> dict[str, str]:
    """The sentence of every option, by ``section.key``."""
    return {
        f"{section}.{name}": _sentence(option.description)
        for section, kinds in _sections().items()
        for kind in reversed(kinds)  # the usual kind's own words win
        for name, option in kind.model_fields.items()
    }


def option_values(key: str) -> list[str]:
    """The values of an option, as the command line has them, where they can be counted; of others none."""
    if key in _TABLES:
        return list(_TABLES[key])
    option = find_option(Config, key)
    return countable_values(option) if option else []


def countable_values(option: FieldInfo) -> list[str]:
    """The same of an option that is at hand."""
    found = list(_values(option.rebuild_annotation()))
    return found if found != ["null"] else []


def _sections() -> dict[str, list[type[Section]]]:
    """The sections by name, with the kinds of those of which there are several: that of the default first."""
    found = {}
    for name, info in Config.model_fields.items():
        usual = type(info.get_default(call_default_factory=True))
        found[name] = [usual, *(kind for kind in sections(info.annotation) if kind is not usual)]
    return found


def _entry(key: str, name: str, kinds: Sequence[type[Section]], *, everywhere: bool) -> Iterator[str]:
    """The lines of an option, which these kinds of its section have."""
    option = kinds[0].model_fields[name]
    values: dict[str, list[str]] = {}
    for kind in kinds:
        values.setdefault(_default(kind.model_fields[name]), []).append(_name_of(kind))
    if key in _TABLES:
        takes, values = _either(list(_TABLES[key])), {_default(option): []}
    else:
        takes = _takes(option.rebuild_annotation())
    usual, *others = values
    told = [takes, f"default {usual}", *(f"{value} with {' and '.join(values[value])}" for value in others)]
    if not everywhere:
        told.append(f"only of {' and '.join(map(_name_of, kinds))}")
    yield from _wrapped(f"{key}  ({'; '.join(told)})", 2)
    sentence = _sentence(option.description)
    if len(kinds) > 1 and key in _TABLES:
        sentence = " ".join(f"{_name_of(kind)}: {_sentence(kind.model_fields[name].description)}" for kind in kinds)
    yield from _wrapped(sentence, 6)


def _takes(annotation: Any) -> str:
    """What an option takes, with bounds and names."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join("null" if part is NoneType else _takes(part) for part in parts)
    if origin is Literal:
        return _either([written(choice, None) for choice in parts])
    if origin is not Annotated:
        return described(annotation)
    marks = [mark for given in parts[1:] for mark in (given.metadata if isinstance(given, FieldInfo) else [given])]
    for mark in marks:
        if isinstance(mark, OneOf):
            return _either(list(mark.table))
        if getattr(mark, "func", None) is expanded:
            return "a path"
    bounds = {name: getattr(mark, name) for name in _BOUNDS for mark in marks if hasattr(mark, name)}
    words = [f"{_BOUNDS[name]} {bound}" for name, bound in bounds.items() if bound != _LARGEST]
    return " ".join([_takes(parts[0]), *words])


def _values(annotation: Any) -> Iterator[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from (name for mark in parts[1:] if isinstance(mark, OneOf) for name in mark.table)
        parts = parts[:1]
    if origin is Literal:
        yield from (written(choice, None) for choice in parts)
    elif annotation is bool:
        yield from ("true", "false")
    elif annotation is NoneType:
        yield "null"
    elif origin not in (list, tuple):
        for part in parts:
            yield from _values(part)


def _default(option: FieldInfo) -> str:
    value = option.get_default(call_default_factory=True)
    return "null" if value is None else written(value, None) if value != [] else "[]"


def _name_of(kind: type[Section]) -> str:
    return str(kind.model_fields["name"].default) if "name" in kind.model_fields else kind.__name__


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _wrapped(text: str, margin: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * margin,
        subsequent_indent=" " * (margin and 6),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sentence(text: str | None) -> str:
    """The first paragraph of a docstring, in one line and without markup."""
    return " ".join((text or "").split("\n\n")[0].replace("``", "").split())
