"""``train.py``, started from nothing, for the short runs: it knows the tests' networks."""

from __future__ import annotations

import tests.launch  # noqa: F401
import train as train_command
from pmf.commands import run_command

if __name__ == "__main__":
    run_command(train_command.main)
