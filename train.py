"""Train a one-step image generator: python train.py --config configs/digits.yaml [key=value ...].

Runs alone, under ``accelerate launch`` and under ``torchrun``.
"""

from __future__ import annotations

import argparse

from pmf.commands import CommandParser, path_text, run_command, say
from pmf.config.inputs import require_inputs
from pmf.config.yaml_file import dump_config, load_config


def main() -> None:
    """Parse, load the config, train."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=path_text, required=True, help="YAML file; see configs/")
    parser.add_argument("--resume", type=path_text, default="auto", metavar="auto|never|PATH", help="default: auto")
    parser.add_argument("--print-config", action="store_true", help="print every resolved value and exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.seed=1 data.path=/imagenet")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        say(dump_config(config).rstrip("\n"))
        return
    require_inputs(config, arguments.resume)

    from pmf.training.trainer import (
        Trainer,  # after the mistakes that can be known without: torch's stack takes seconds
    )

    Trainer(config, resume=arguments.resume).train()


if __name__ == "__main__":
    run_command(main)
