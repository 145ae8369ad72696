"""Memory per device and messages per step of the recipes, counted: nothing is computed, measured or downloaded.

    python -m benchmarks.scaling [CONFIG ...] [--processes N ...]

Prints Markdown. Activations are those of the recipe's own step, simulated on tensors without contents, which takes a
minute or so for each config. The micro-batch is the largest divisor of the global batch per device that leaves 9 % of
the device free; "-" where not even one image fits. See docs/scaling.md.
"""

from __future__ import annotations

import argparse

from pmf.commands import CommandParser, path_text, run_command, whole_from
from pmf.config.inputs import require_model
from pmf.config.yaml_file import load_config
from pmf.errors import UserError

RECIPES = [f"configs/pmf_{size}_16.yaml" for size in "blh"]


def main() -> None:
    """Print a table for each config."""
    parser = CommandParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = " ".join(RECIPES)
    parser.add_argument("configs", type=path_text, nargs="*", metavar="CONFIG", help=f"default: {default}")
    parser.add_argument(
        "--processes", type=whole_from(1), nargs="+", default=[8, 64, 1024], metavar="N", help="devices in all"
    )
    arguments = parser.parse_intermixed_args()
    configs = [load_config(path) for path in arguments.configs or RECIPES]
    for config in configs:
        require_model(config)
        for count in arguments.processes:
            batch = config.training.global_batch_size
            if batch % count:
                raise UserError(f"--processes {count} does not divide training.global_batch_size {batch}")

    from benchmarks.scaling.tables import (
        tables,  # after a config is known to be good: importing torch's stack takes seconds
    )

    for config in configs:
        for line in tables(config, arguments.processes):
            print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
