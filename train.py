"""Train a one-step image generator: python train.py --config configs/digits.yaml [key=value ...].

Runs alone, under ``accelerate launch`` and under ``torchrun``. ``pmf train`` is the same command.
"""

from pmf.cli.train import main
from pmf.commands import run_command

if __name__ == "__main__":
    run_command(main)
