"""What a run would trip over, before it is started: ``pmf doctor CONFIG [key=value ...]``.

One verdict a line: ok, warning or error; the exit status is 2 after any error. The checks are those of training itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from pmf.commands import path_text, program, run_command
from pmf.config.command_line import CONFIG_HELP, ConfigParser, takes_config
from pmf.config.shipped import find_config
from pmf.config.yaml_file import load_config
from pmf.errors import UserError


def main() -> None:
    """Parse, examine, and exit with 2 after any error."""
    parser = ConfigParser(prog=program("python -m pmf.doctor"), description=__doc__)
    takes_config(parser.add_argument("config", type=path_text, help=CONFIG_HELP))
    parser.add_overrides("as they would be given to training")
    arguments = parser.parse_intermixed_args()
    num_errors = 0
    for verdict, subject, text in _verdicts(arguments.config, arguments.overrides):
        num_errors += verdict == "error"
        print(f"{verdict:<9}{subject:<12}{text}")
    sys.exit(2 if num_errors else 0)


def _verdicts(path: str, overrides: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Verdict, subject and text; if the config cannot be read, there is no other subject."""
    try:
        config = load_config(path, overrides)
    except UserError as error:
        yield "error", "config", str(error)
        return
    yield "ok", "config", str(find_config(path))
    from pmf.training.examination import examine  # importing torch takes seconds

    yield from examine(config)


if __name__ == "__main__":
    run_command(main)
