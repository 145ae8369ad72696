"""Run the command: python -m pmf.demo."""

from pmf.commands import run_command
from pmf.demo.command import main

run_command(main)
