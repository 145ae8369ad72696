"""The console command ``pmf``: a table of commands, of which only the one that is asked for is imported."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from dataclasses import dataclass
from importlib.metadata import version

from pmf.commands import CommandParser, completed_by, run_command, say
from pmf.errors import UserError
from pmf.tables import resolve


@dataclass(frozen=True)
class Command:
    """A row of the table.

    Attributes:
        main: ``"package.module:function"``, which reads ``sys.argv``.
        told: its line in ``pmf --help``.
    """

    main: str
    told: str


COMMANDS: dict[str, Command] = {
    "train": Command("pmf.cli.train:main", "train a model, or continue its run"),
    "sample": Command("pmf.cli.evaluate:sample", "write a folder of PNGs of a checkpoint"),
    "fid": Command("pmf.cli.evaluate:fid", "FID and Inception score of a checkpoint or of a folder of images"),
    "sweep": Command("pmf.cli.evaluate:sweep", "FID over a grid of sampling options"),
    "reference": Command("pmf.cli.evaluate:reference", "write the statistics of a data set, for fid --reference"),
    "auto-batch": Command("pmf.cli.batch_size:main", "find the largest micro-batch that fits, and write it"),
    "encode": Command("pmf.data.encode:main", "encode images to the latents that iMF and MeanFlow train on"),
    "doctor": Command("pmf.doctor:main", "say what a run would trip over, before it is started"),
    "report": Command("pmf.report.command:main", "draw curves and page of a run folder again"),
    "export": Command("pmf.export.command:main", "write a model as ONNX or as a PyTorch program"),
    "demo": Command("pmf.demo.command:main", "play with a model in the browser"),
    "convert": Command("pmf.convert:main", "official checkpoints to ours, and back"),
    "configs": Command("pmf.cli.configs:main", "list the recipes, or print one"),
    "completion": Command("pmf.cli.completion:main", "print what makes a shell complete these commands"),
}


def pmf() -> None:
    """The command: parse, call, and end as commands do."""
    run_command(main)


def main() -> None:
    """Hand the arguments to the command that the first of them names.

    Raises:
        UserError: there is no such command.
    """
    name = _completed_name() if "_ARGCOMPLETE" in os.environ else next(iter(sys.argv[1:]), None)
    if name in COMMANDS:
        sys.argv = [f"pmf {name}", *sys.argv[2:]]
        resolve(COMMANDS[name].main)()
        return
    parser = _parser()
    arguments = parser.parse_args(sys.argv[1:2])
    if arguments.version:
        say(f"pmf {version('pmf')}")
    elif arguments.command is None:
        raise UserError(f"pmf needs a command: {', '.join(COMMANDS)}; pmf --help says what they do")
    else:
        close = difflib.get_close_matches(arguments.command, COMMANDS, n=1)
        advice = f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(COMMANDS)}"
        raise UserError(f"pmf {arguments.command}: there is no such command; {advice}")


def _parser() -> CommandParser:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.told}" for name, command in COMMANDS.items())
    parser = CommandParser(
        prog="pmf",
        usage="pmf COMMAND ...",
        description="Train and evaluate one-step image generators: pMF, MeanFlow, improved MeanFlow.",
        epilog=f"commands:\n{rows}\n\npmf COMMAND --help says what each takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    action = parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    completed_by(action, lambda **_: {name: command.told for name, command in COMMANDS.items()})
    return parser


def _completed_name() -> str | None:
    """The command on a line that a shell wants completed; None while that is the word to complete.

    argcomplete is told to leave the command's name out, as it would leave out a script's behind ``python``.
    """
    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", 0))]
    found = re.match(r"\s*\S+\s+(\S+)\s", line)
    if found is None or found[1] not in COMMANDS:
        return None
    os.environ["_ARGCOMPLETE"] = str(int(os.environ["_ARGCOMPLETE"]) + 1)
    return found[1]
