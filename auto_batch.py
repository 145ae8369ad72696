"""Find the largest micro-batch size that fits: python auto_batch.py --config configs/digits.yaml [key=value ...].

Runs alone, under ``accelerate launch`` and under ``torchrun``. ``pmf auto-batch`` is the same command.
"""

from pmf.cli.batch_size import main
from pmf.commands import run_command

if __name__ == "__main__":
    run_command(main)
