"""Flags for the options of the sampling section, made of their declarations. Needs no torch."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from pmf.config.command_line import takes_one_of
from pmf.config.listing import countable_values
from pmf.config.overrides import NotOfItsKindError, read_value
from pmf.config.sampling_options import Use, columns_of, options_for, use_of
from pmf.config.sections import sampling_section
from pmf.config.yaml_file import config_from_plain

_PREFIX = "sampling."


def add_sampling_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """A flag for every option that is not training's alone; what is not given is absent from the arguments.

    Args:
        parser: of a verb.
        several: each option that images depend on takes several values (``--omega 5 6``); a pair is given by repeating
            its flag.
    """
    for name, option in options_for(sampling_section(), Use.IMAGES, Use.WEIGHTS, Use.BATCHES).items():
        flag = "--" + name.replace("_", "-")
        many = several and use_of(option) is not Use.BATCHES
        shape: dict[str, Any] = {"metavar": name.upper()}
        if parts := _parts(option):
            names = columns_of(name, option)
            shape["metavar"] = tuple(part.upper() for part in names) if len(names) == len(parts) else name.upper()
            shape |= {"nargs": len(parts), "action": "append" if many else "store"}
        elif many:
            shape["nargs"] = "+"
        repeat = "; repeat for several" if parts and many else ""
        told = " ".join((option.description or name).split()).removesuffix(".")
        action = parser.add_argument(
            flag,
            dest=_PREFIX + name,
            default=argparse.SUPPRESS,
            type=_reader(flag, parts[0] if parts else option, part=bool(parts)),
            help=f"{told}; default: the config's{repeat}".replace("%", "%%"),
            **shape,
        )
        takes_one_of(action, countable_values(option))


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that a command line gives, by name, in the order of their declaration."""
    given = {key.removeprefix(_PREFIX): value for key, value in vars(arguments).items() if key.startswith(_PREFIX)}
    return {name: given[name] for name in sampling_section().model_fields if name in given}


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value for each option; the first option's value changes fastest."""
    names = list(values)[::-1]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*(values[name] for name in names))]


def check_sampling(values: Mapping[str, Any]) -> None:
    """Values of the sampling section, without ``ema``: which averages there are is known with the checkpoint.

    Raises:
        UserError: one cannot be.
    """
    # A whole config, because that is what is checked; its other values do not matter.
    plain = {"data": {"kind": "synthetic"}, "training": {"max_steps": 1}, "sampling": dict(values)}
    config_from_plain(plain, "command line")


def _parts(option: FieldInfo) -> list[FieldInfo]:
    """The parts of an option that is a pair or triple ..., each with its default; of others none."""
    if get_origin(option.annotation) is not tuple:
        return []
    kinds = get_args(option.annotation)
    return [FieldInfo.from_annotated_attribute(kind, value) for kind, value in zip(kinds, option.default, strict=True)]


def _reader(flag: str, option: FieldInfo, *, part: bool) -> Callable[[str], Any]:
    """What reads one value of an option, or of a part of one, as ``key=value`` does."""

    def read(text: str) -> Any:
        try:
            return read_value(option, flag, text)
        except NotOfItsKindError as error:
            # An example would be of one part, which is not enough for a pair.
            takes = str(error).partition(", e.g. ")[0] if part else str(error)
            raise argparse.ArgumentTypeError(f"{text!r} does not fit: it {takes}") from None

    return read
