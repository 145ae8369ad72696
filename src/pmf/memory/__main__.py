"""Memory and communication of the recipes on paper: python -m pmf.memory [CONFIG ...]. Nothing is computed or loaded.

Acting out a step of a large network takes a minute or two; there are four for each config.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pmf.batching import divisors
from pmf.config import Config
from pmf.configfile import load_config
from pmf.distributed import run_command
from pmf.memory.estimate import Estimate, MemoryEstimator, StateBytes
from pmf.memory.scaling import STRATEGIES, NetworkBytes, message_bytes, state_bytes

GIB = 2**30
RECIPES = [f"configs/pmf_{size}_16.yaml" for size in "blh"]
DEVICES = {"A100-40": 40 * GIB, "A100-80": 80 * GIB, "H200": 139 * GIB}
HEADROOM = 0.09


def main() -> None:
    """Print two tables in Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m pmf.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", default=RECIPES, metavar="CONFIG", help="default: the three 16-pixel recipes")
    parser.add_argument("--processes", type=int, nargs="+", default=[8, 64, 1024], metavar="N", help="GPUs in all")
    arguments = parser.parse_args()
    print_table = []
    for path in arguments.configs:
        config = load_config(path)
        lines = {checkpointing: _line(config, checkpointing) for checkpointing in (False, True)}
        _print_activations(config, lines)
        for processes in arguments.processes:
            print_table += _rows(config, processes, lines)
