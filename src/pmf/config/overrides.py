"""The values of ``section.key=value``: as the option is declared, a string as it stands and anything else read whole.

``null`` is the absent value of an option that may be absent. Lists are ``a,b`` or ``[a, b]``.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pmf.options import FLOAT, Section, number

# What one value is called, what several are, and an example.
WORDS: dict[Any, tuple[str, str, str]] = {
    bool: ("true or false", "true or false", "true"),
    int: ("a whole number", "whole numbers", "8"),
    float: ("a number", "numbers", "0.5"),
    str: ("a string", "strings", "text"),
}


class NotOfItsKindError(ValueError):
    """Text that an option cannot take; says what it takes, with an example."""


def find_option(model: type[BaseModel], key: str) -> FieldInfo | None:
    """The option that a dotted key names, also in a section that is one of several; None if there is none."""
    name, _, rest = key.partition(".")
    info = model.model_fields.get(name)
    if info is None or not rest:
        return info
    found = (find_option(section, rest) for section in sections(info.annotation))
    return next((option for option in found if option is not None), None)


def sections(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation admits."""
    declared = [kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, Section)]
    return [section for kind in declared for section in kind.alternatives()]


def read_value(option: FieldInfo, key: str, text: str) -> Any:
    """The value that an option's text stands for; ranges and choices are for the model to check.

    Raises:
        NotOfItsKindError: the option takes something else.
    """
    try:
        return _read(text, option.annotation)
    except ValueError:
        example = f"{key}={written(option.get_default(call_default_factory=True), option.annotation)}"
        raise NotOfItsKindError(f"takes {described(option.annotation)}, e.g. {example}") from None


def written(value: Any, annotation: Any) -> str:
    """A value as the command line has it; where there is none, an example of the option's kind."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple) and value:
        return ",".join(written(item, None) for item in value)
    if value is not None and value != []:
        return str(value)
    return next(WORDS[kind][2] for kind in _kinds(annotation) if kind in WORDS)


def _kinds(annotation: Any) -> list[Any]:
    """The plain types and models that an annotation is made of; a list counts as its items, a choice as its type."""
    if get_origin(annotation) is Literal:
        return [type(choice) for choice in get_args(annotation)]
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    parts = [kind for part in get_args(annotation) for kind in _kinds(part)]
    return parts or [annotation]


def described(annotation: Any) -> str:
    """What an annotation takes, in words: ``a whole number or null``."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return described(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(["null" if part is NoneType else described(part) for part in parts])
    if origin is Literal:
        return " or ".join(written(choice, None) for choice in parts)
    several = WORDS[next(kind for kind in _kinds(annotation) if kind in WORDS)][1] if parts else ""
    if origin is tuple:
        return f"{len(parts)} {several} with commas between"
    return f"{several} with commas between" if parts else WORDS[annotation][0]


def _read(text: str, annotation: Any) -> Any:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _read(text, parts[0])
    if origin in (Union, UnionType):
        return _read_one_of(text, parts)
    if origin is Literal:
        choices = {written(choice, None): choice for choice in parts}
        if bool in _kinds(annotation):  # a word beside true and false
            return _read_word(text.lower(), choices)
        return choices[text] if text in choices else _read_plain(text, type(parts[0]))
    if origin is list:
        items = _split(text)
        return [_read(item, parts[0]) for item in items]
    if origin is tuple:
        return [_read(item, part) for item, part in zip(_split(text), parts, strict=True)]
    return _read_plain(text, annotation)


def _read_one_of(text: str, parts: tuple[Any, ...]) -> Any:
    if NoneType in parts and text == "null":
        return None
    for part in sorted(parts, key=lambda part: str in _kinds(part)):  # a string takes anything
        if part is not NoneType:
            try:
                return _read(text, part)
            except ValueError:
                continue
    raise ValueError


def _read_word(text: str, choices: dict[str, Any]) -> Any:
    if text not in choices:
        raise ValueError
    return choices[text]


def _read_plain(text: str, kind: Any) -> Any:
    if kind is str and text:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float) and FLOAT.fullmatch(text):
        value = number(text)
        if kind is float or isinstance(value, int) or value.is_integer():
            return value if kind is float else int(value)
    raise ValueError


def _split(text: str) -> list[str]:
    """Items of a list, without the quotes that YAML would have around strings."""
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError
        text = text[1:-1]
        if not text.strip():
            return []
    items = []
    for item in map(str.strip, text.split(",")):
        quoted = len(item) > 1 and item[0] == item[-1] and item[0] in "'\""
        if not item or (item[0] in "'\"" and not quoted):  # a comma within quotes would cut one in two
            raise ValueError
        items.append(item[1:-1] if quoted else item)
    return items
