"""List the recipes that come with pmf, or print one: pmf configs digits > mine.yaml."""

from __future__ import annotations

from pmf.commands import CommandParser, program, say
from pmf.config.command_line import takes_one_of
from pmf.config.shipped import known_configs, shipped_config, shipped_folder, shipped_names
from pmf.errors import UserError


def main() -> None:
    """Parse and print.

    Raises:
        UserError: there is no recipe of that name.
    """
    parser = CommandParser(prog=program("pmf configs"), description=__doc__)
    name = parser.add_argument("name", nargs="?", help="print this recipe; without it, list all")
    takes_one_of(name, shipped_names())
    arguments = parser.parse_args()
    if arguments.name is None:
        width = max(map(len, shipped_names()), default=0)
        for known in shipped_names():
            first = (shipped_folder() / f"{known}.yaml").read_text().partition("\n")[0]
            say(f"{known:<{width}}  {first.removeprefix('# ')}")
        return
    path = shipped_config(arguments.name)
    if path is None:
        raise UserError(f"{arguments.name}: there is no recipe of that name; {known_configs(arguments.name)}")
    say(path.read_text().rstrip("\n"))
