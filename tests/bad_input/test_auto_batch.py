"""What ``auto_batch.py`` cannot search for."""

from __future__ import annotations

import auto_batch as auto_batch_command
from tests.bad_input.cases import DIGITS, Case


def test_what_it_finds_is_given(refused):
    case = Case(
        arguments=("--config", DIGITS, "training.micro_batch_size=8"),
        message="command line: training.micro_batch_size is what this command finds; leave it out",
    )
    assert refused(auto_batch_command.main, case, *case.arguments) == case.message


def test_a_size_that_is_none(fails):
    printed = fails(auto_batch_command.main, "--config", DIGITS, "--device-memory", "forty")
    assert "forty is not a size; write a number and GiB" in printed.splitlines()[-1]  # below the usage
