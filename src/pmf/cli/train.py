"""Train a one-step image generator, or continue its run: %(prog)s --config digits [key=value ...].

Runs alone, under ``accelerate launch`` and under ``torchrun``.
"""

from __future__ import annotations

import argparse

from pmf.commands import path_text, program, say
from pmf.config.command_line import CONFIG_HELP, ConfigParser, takes_config
from pmf.config.inputs import require_inputs
from pmf.config.yaml_file import dump_config, load_config


def main() -> None:
    """Parse, load the config, train."""
    parser = ConfigParser(
        prog=program("train.py"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    takes_config(parser.add_argument("--config", type=path_text, required=True, help=CONFIG_HELP))
    parser.add_argument("--resume", type=path_text, default="auto", metavar="auto|never|PATH", help="default: auto")
    parser.add_argument("--print-config", action="store_true", help="print every resolved value and exit")
    parser.add_overrides("e.g. training.seed=1 data.path=/imagenet")
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
