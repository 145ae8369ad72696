"""What classes are called, and which class is meant by a name."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from typing import SupportsIndex

from pmf.data.options import DataConfig
from pmf.errors import UserError

IMAGENET_CLASSES = 1000


def resolve_names(data: DataConfig, recorded: Sequence[str]) -> tuple[str, ...]:
    """The name of each class of a data set, by label.

    Args:
        data: the section of the config.
        recorded: what the data set itself called them when it was trained on; () if that is not known.

    Returns:
        Those that were recorded, where folders named like ImageNet's (n01440764) get ImageNet's names; or else digits,
        ImageNet's where there are as many classes, or ``class 0``, ``class 1``, ...
    """
    if len(recorded) == data.num_classes:
        return _without_synsets(tuple(recorded))
    if data.kind == "digits":
        return tuple(map(str, range(data.num_classes)))
    if data.num_classes == IMAGENET_CLASSES and data.kind != "synthetic":
        return tuple(_imagenet().values())
    return tuple(f"class {label}" for label in range(data.num_classes))


def find_class(label: str, names: Sequence[str]) -> int:
    """The label of the class of that name.

    It is one of ``names`` or, where these list several with commas between, one of those; upper and lower case are
    the same.

    Raises:
        UserError: there is no such class, or there are several.
    """
    wanted = _folded(label)
    whole = [number for number, name in enumerate(names) if _folded(name) == wanted]
    found = whole or [number for number, name in enumerate(names) if wanted in _synonyms(name)]
    if len(found) == 1:
        return found[0]
    if found:
        told = ", ".join(f"{number} ({names[number]})" for number in found[:5])
        raise UserError(f"label {label!r}: is the name of {len(found)} classes; give the number of one: {told}")
    every = {synonym: number for number, name in enumerate(names) for synonym in _synonyms(name)}
    close = difflib.get_close_matches(wanted, every, n=3)
    told = ", ".join(f"{match!r} ({every[match]})" for match in close)
    hint = f"did you mean {told}?" if close else f"classes are 0 ... {len(names) - 1}, the first is {names[0]!r}"
    raise UserError(f"label {label!r}: no class has this name; {hint}")


def check_label(label: SupportsIndex, num_classes: int) -> int:
    """The number of a class as an int.

    Raises:
        UserError: it is none, or there is no such class.
    """
    try:
        number = operator.index(label)
    except TypeError:
        raise UserError(f"label {label!r}: give the number of a class, or its name") from None
    if not 0 <= number < num_classes:
        raise UserError(f"label {number}: is not in 0 ... {num_classes - 1}")
    return number


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _synonyms(name: str) -> list[str]:
    return [_folded(part) for part in name.split(",")]


def _without_synsets(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(len(name) == 9 and name[0] == "n" and name[1:].isdecimal() for name in names):
        return names
    known = _imagenet()
    return tuple(known.get(name, name) for name in names)


def _imagenet() -> dict[str, str]:
    """ImageNet's 1000 classes in the order of their labels: WordNet's number to the names, with commas between."""
    from timm.data import ImageNetInfo  # takes a second

    table = ImageNetInfo("imagenet-1k")
    return {name: table.label_name_to_description(name) for name in table.label_names()}
