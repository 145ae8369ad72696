"""What the commands that read a config share: ``key=value``, the help on it, and what shells complete."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from pmf.commands import CommandParser, completed_by
from pmf.config.listing import option_listing, option_sentences, option_values
from pmf.config.shipped import shipped_names

CONFIG_HELP = "YAML file, or the name of a recipe: pmf configs lists them"


class ConfigParser(CommandParser):
    """The parser of a command that takes ``key=value``; ``--help`` lists every option of the config, ``-h`` none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, add_help=False)
        self.add_argument("-h", action="help", help="show this and exit")
        self.add_argument(
            "--help", action=_LongHelp, nargs=0, help="show this and every option of the config, and exit"
        )

    def complete(self) -> None:
        """Answer a shell; ``key=value`` already given is left out, since argcomplete would offer none behind a flag."""
        if "COMP_LINE" in os.environ:
            line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
            line = re.sub(r"\s[\w.]+=\S*(?=\s)", "", line)
            os.environ |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
        super().complete()

    def error(self, message: str) -> NoReturn:
        """See :class:`CommandParser`; argparse counts key=value, of which there may be none, as required."""
        super().error(message.removesuffix(", key=value"))

    def add_overrides(self, told: str) -> None:
        """The argument ``key=value``, any number of times; ``told`` is its help."""
        action = self.add_argument("overrides", nargs="*", metavar="key=value", help=told)
        completed_by(action, _overrides)


class _LongHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.print_help()
        print(f"\nkey=value, or in a YAML the key below its section:\n\n{option_listing()}")
        parser.exit()


def takes_config(action: argparse.Action) -> None:
    """Have shells complete an argument that is a config."""
    completed_by(action, _configs)


def takes_one_of(action: argparse.Action, values: Iterable[str]) -> None:
    """Have shells complete an argument that takes one of these values, if there are any."""
    if known := dict.fromkeys(values, ""):
        completed_by(action, lambda **_: known)


def _configs(prefix: str, **_: Any) -> dict[str, str]:
    from argcomplete import FilesCompleter

    return dict.fromkeys([*shipped_names(), *FilesCompleter(("yaml", "yml"))(prefix)], "")


def _overrides(prefix: str, **_: Any) -> dict[str, str]:
    key, separator, _value = prefix.partition("=")
    if separator:
        return {f"{key}={value}": "" for value in option_values(key)}
    return {f"{key}=": sentence for key, sentence in option_sentences().items()}
