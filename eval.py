"""Turn a checkpoint into images: python eval.py sample --checkpoint runs/digits --output samples --num-images 100.

Runs alone, under ``accelerate launch`` and under ``torchrun``; image i is a function of the seed and i alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pmf.distributed import run_command


def main() -> None:
    """Parse and call the verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    sample = verbs.add_parser("sample", help="write a folder of PNGs")
    sample.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="run folder, checkpoint folder or .safetensors; with --config also an official .pt or JAX checkpoint",
    )
    sample.add_argument(
        "--config", type=Path, help="recipe that an official checkpoint was trained with, e.g. configs/pmf_b_16.yaml"
    )
    sample.add_argument("--output", type=Path, required=True, help="folder for 000000.png ... and labels.csv")
    sample.add_argument("--num-images", type=int, required=True)
    sample.add_argument("--num-steps", type=int, help="network evaluations per image; default: the config's")
    sample.add_argument("--omega", type=float, help="guidance scale; default: the config's")
    sample.add_argument("--interval", type=float, nargs=2, metavar=("T_MIN", "T_MAX"), help="guidance interval")
    sample.add_argument("--ema", help='which average, e.g. 2000, or "online"; default: the config\'s')
    sample.add_argument("--labels", default="all", help="comma-separated classes to cycle through, or all")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--batch-size", type=int, help="images per forward pass; default: the config's")
    arguments = parser.parse_args()

    from pmf.sampling import sample_folder  # after parsing: importing torch's stack takes seconds

    sample_folder(
        checkpoint=arguments.checkpoint,
        recipe=arguments.config,
        output=arguments.output,
        num_images=arguments.num_images,
        labels=arguments.labels,
        seed=arguments.seed,
        ema=arguments.ema,
        overrides={
            "num_steps": arguments.num_steps,
            "omega": arguments.omega,
            "interval": arguments.interval,
            "batch_size": arguments.batch_size,
        },
    )


if __name__ == "__main__":
    run_command(main)
