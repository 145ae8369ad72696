"""What a run says of itself, written again: curves.png, samples/strip.png and README.md of its folder."""

from __future__ import annotations

import argparse

from pmf.commands import CommandParser, program, say, to_path
from pmf.report.writing import write_report


def main() -> None:
    """Parse and write."""
    parser = CommandParser(
        prog=program("python -m pmf.report"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=to_path, metavar="RUN", help="a run folder")
    arguments = parser.parse_args()
    write_report(arguments.run)
    say(f"{arguments.run}: curves.png, samples/strip.png where there are grids, README.md unless it is your own")
