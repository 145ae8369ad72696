"""``train.py``, of which rank 1 is killed in step 7 of the first attempt that torchrun makes."""

from __future__ import annotations

import os

import tests.launch  # noqa: F401  (has the networks of short runs)
import train as train_command
from pmf.commands import run_command
from tests.faults.faults import STEP, SignalAt

if __name__ == "__main__":
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        SignalAt(STEP, 7)()
    run_command(train_command.main)
