"""Turn a checkpoint into images, and images into numbers.

    python eval.py sample --checkpoint runs/digits --output samples --num-images 100
    python eval.py fid --checkpoint runs/digits --reference digits
    python eval.py sweep --checkpoint runs/digits --reference digits --omega 1 1.5 2 --output sweep
    python eval.py reference --config configs/pmf_b_16.yaml --output imagenet_256.npz

Runs alone, under ``accelerate launch`` and under ``torchrun``. ``pmf sample`` and so on are the same commands.
"""

from pmf.cli.evaluate import main
from pmf.commands import run_command

if __name__ == "__main__":
    run_command(main)
