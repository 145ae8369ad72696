"""Find the largest micro-batch size that fits: python auto_batch.py --config configs/digits.yaml [key=value ...].

Tries real training steps in fresh processes, writes training.micro_batch_size into the config and changes nothing
else in it. Runs alone, under ``accelerate launch`` and under ``torchrun``: start it as the training will be started.
Overrides hold for the trials; training.global_batch_size=N is also written.
"""

from __future__ import annotations

import argparse
import re

from pmf.auto_batch.request import Request
from pmf.commands import CommandParser, run_command, to_path
from pmf.config.inputs import require_model

UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6}


def main() -> None:
    """Parse, search, write."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=to_path, required=True, help="YAML file; see configs/")
    parser.add_argument("--dry-run", action="store_true", help="show the table and what would change")
    parser.add_argument(
        "--device-memory",
        type=size_in_bytes,
        metavar="40GiB",
        help="use no more than this; on a machine without GPU: estimate for a GPU of this size, run nothing",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.compile=true")
    arguments = parser.parse_intermixed_args()
    request = Request(
        config_path=arguments.config,
        overrides=arguments.overrides,
        device_memory=arguments.device_memory,
        dry_run=arguments.dry_run,
    )
    require_model(request.load())

    from pmf.auto_batch.command import find_and_write  # importing torch's stack takes seconds

    find_and_write(request)


def size_in_bytes(text: str) -> int:
    """``40GiB`` as a number of bytes."""
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(UNITS)})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is not a size; write a number and {', '.join(UNITS)}, as in 40GiB")
    return int(float(match[1]) * UNITS[match[2]])


if __name__ == "__main__":
    run_command(main)
