"""Run the command: python -m pmf.report."""

from pmf.commands import run_command
from pmf.report.command import main

run_command(main)
