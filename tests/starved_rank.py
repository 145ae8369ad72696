"""auto_batch.py on a machine on whose rank 1 $MOST_IMAGES images fit: started by test_auto_batch.py under torchrun.

python tests/starved_rank.py CONFIG [key=value ...]
python tests/starved_rank.py --candidate CONFIG RESULT STEPS
"""

import os
import sys
from pathlib import Path

import torch

from pmf.auto_batch import candidate
from pmf.auto_batch.command import Request, find_and_write
from pmf.commands import run_command
from pmf.training.step import TrainingStep


def starve() -> None:
    step = TrainingStep.__call__

    def starved(self, batches):
        if self._world.rank == 1 and len(batches[0].labels) > int(os.environ["MOST_IMAGES"]):
            raise torch.OutOfMemoryError("as CUDA says it")
        return step(self, batches)

    TrainingStep.__call__ = starved


def search() -> None:
    path, *overrides = sys.argv[1:]
    request = Request(config_path=Path(path), overrides=overrides, device_memory=None, dry_run=False)
    find_and_write(request, candidate=(sys.executable, __file__, "--candidate"))


if __name__ == "__main__":
    if sys.argv[1] == "--candidate":
        del sys.argv[1]
        starve()
        run_command(candidate.main)
    else:
        run_command(search)
