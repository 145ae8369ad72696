"""Find the largest micro-batch size that fits: %(prog)s --config mine.yaml [key=value ...].

Tries real training steps in fresh processes, writes training.micro_batch_size into the config and changes nothing
else in it. A recipe of the library is not written into: copy it first, pmf configs digits > mine.yaml.

Runs alone, under ``accelerate launch`` and under ``torchrun``: start it as the training will be started. Overrides hold
for the trials; training.global_batch_size=N is also written.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pmf.auto_batch.request import Request
from pmf.commands import path_text, program
from pmf.config.command_line import CONFIG_HELP, ConfigParser, takes_config
from pmf.config.inputs import require_model
from pmf.config.shipped import find_config, local_config
from pmf.errors import UserError

UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6}


def main() -> None:
    """Parse, search, write."""
    parser = ConfigParser(
        prog=program("auto_batch.py"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    takes_config(parser.add_argument("--config", type=path_text, required=True, help=CONFIG_HELP))
    parser.add_argument("--dry-run", action="store_true", help="show the table and what would change")
    parser.add_argument(
        "--device-memory",
        type=size_in_bytes,
        metavar="40GiB",
        help="use no more than this; on a machine without GPU: estimate for a GPU of this size, run nothing",
    )
    parser.add_overrides("e.g. training.compile=true")
    arguments = parser.parse_intermixed_args()
    request = Request(
        config_path=find_config(arguments.config),
        overrides=arguments.overrides,
        device_memory=arguments.device_memory,
        dry_run=arguments.dry_run,
    )
    require_model(request.load())
    if not arguments.dry_run and local_config(arguments.config) is None:
        name = Path(arguments.config).stem
        raise UserError(
            f"--config {arguments.config}: is a recipe of the library, which is not written into; copy it (pmf configs "
            f"{name} > {name}.yaml) and give --config {name}.yaml, or only look with --dry-run"
        )

    from pmf.auto_batch.command import find_and_write  # importing torch's stack takes seconds

    find_and_write(request)


def size_in_bytes(text: str) -> int:
    """``40GiB`` as a number of bytes."""
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(UNITS)})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is not a size; write a number and {', '.join(UNITS)}, as in 40GiB")
    return int(float(match[1]) * UNITS[match[2]])
