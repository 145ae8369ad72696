"""The GPU's tests can be run on a machine with little more than torch."""

from __future__ import annotations

import pytest

from tests.launch import launch


@pytest.mark.slow
def test_they_are_found_without_the_packages_that_they_do_not_need():
    arguments = ("-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    result = launch("tests/bare_machine.py", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    found = [line for line in result.stdout.splitlines() if "::" in line]
    assert {line.partition("::")[0] for line in found} >= {
        "tests/gpu/test_latents.py",
        "tests/gpu/test_step.py",
        "tests/gpu/test_optimizer.py",
        "tests/gpu/test_training.py",
        "tests/optim/test_optimizer.py",
        "tests/data/test_loader.py",
    }
    skipped = [line for line in result.stdout.splitlines() if line.startswith("SKIPPED") and "needs" in line]
    assert {name for name in ("torch-fidelity", "wandb") if any(name in line for line in skipped)} == {
        "torch-fidelity",
        "wandb",
    }
