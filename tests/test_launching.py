"""The launcher files are what accelerate takes, and start what their names say."""

from __future__ import annotations

import subprocess

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from pmf.training.preflight import restart_problem
from tests.launch import ROOT

PROCESSES = {"one_gpu": (1, 1), "eight_gpus": (8, 1), "two_machines": (16, 2)}


def test_every_file_is_in_the_table():
    assert {path.stem for path in (ROOT / "configs" / "accelerate").glob("*.yaml")} == set(PROCESSES)


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_reads_its_files(name):
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))  # refuses unknown keys
    assert (config.num_processes, config.num_machines) == PROCESSES[name]
    assert str(config.mixed_precision) == "no"
    assert config.distributed_type == ("MULTI_GPU" if config.num_processes > 1 else "NO")
    assert not config.use_cpu


def test_the_batch_script_is_valid_shell():
    subprocess.run(["bash", "-n", str(ROOT / "configs" / "slurm" / "train.sbatch")], check=True, timeout=20)


@pytest.mark.parametrize(
    ("restarts", "shared", "warned"), [("3", "True", True), ("3", "False", False), ("0", "True", False)]
)
def test_restarts_that_share_a_store_are_warned_of(restarts, shared, warned, monkeypatch):
    """What torchrun tells its processes; tests/faults/test_kill.py restarts one as the warning advises."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    assert (restart_problem() is not None) == warned
