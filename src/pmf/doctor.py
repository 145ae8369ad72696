"""What a run would trip over, before it is started: ``python -m pmf.doctor CONFIG [key=value ...]``.

One verdict a line: ok, warning or error; the exit status is 2 after any error. The checks are those of training itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pmf.commands import CommandParser, path_text, run_command
from pmf.config.yaml_file import load_config
from pmf.errors import CrossFieldError, UserError


class Report:
    """Prints verdicts and counts the errors among them."""

    def __init__(self) -> None:
        self.num_errors = 0

    def tell(self, verdict: str, subject: str, text: str) -> None:
        """One line; ``verdict`` is ok, warning or error."""
        self.num_errors += verdict == "error"
        print(f"{verdict:<9}{subject:<12}{text}")

    @contextmanager
    def on(self, subject: str) -> Iterator[None]:
        """A mistake that the body finds is an error on ``subject``."""
        try:
            yield
        except (UserError, CrossFieldError) as error:
            self.tell("error", subject, str(error))


def main() -> None:
    """Parse, examine, and exit with 2 after any error."""
    parser = CommandParser(prog="python -m pmf.doctor", description=__doc__)
    parser.add_argument("config", type=path_text, help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    report = Report()
    with report.on("config"):
        config = load_config(arguments.config, arguments.overrides)
        report.tell("ok", "config", arguments.config)
        from pmf.training.examination import examine  # importing torch takes seconds

        examine(config, report)
    sys.exit(2 if report.num_errors else 0)


if __name__ == "__main__":
    run_command(main)
