"""Run the command: python -m pmf.export."""

from pmf.commands import run_command
from pmf.export.command import main

run_command(main)
