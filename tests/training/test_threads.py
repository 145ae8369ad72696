"""How many threads compute on a CPU: never more than there are cores, and by default one core is left to others."""

from __future__ import annotations

import os

import pytest
import torch

from pmf.config.yaml_file import load_config
from pmf.distributed.world import join_world, share_cores
from pmf.training.processes import start_processes
from tests.launch import ROOT

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="computes on a GPU")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many cores on which nobody has set OMP_NUM_THREADS."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def of(cores: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        torch.set_num_threads(cores)  # torch's own choice

    return of


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
def test_the_embedded_run_and_its_samples_leave_a_core_to_whatever_else_runs(cores, machine):
    machine(cores)
    start_processes(load_config(ROOT / "configs" / "digits.yaml").training)
    assert torch.get_num_threads() == 1
    machine(cores)
    start_processes(load_config(ROOT / "configs" / "digits.yaml", ["training.num_threads=null"]).training)
    assert torch.get_num_threads() == max(cores - 1, 1)
    machine(cores)
    join_world()  # eval.py
    assert torch.get_num_threads() == max(cores - 1, 1)


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "given"),
    [(8, 2, None, 3), (8, 2, 3, 3), (8, 2, 6, 4), (2, 2, None, 1), (2, 4, 2, 1), (16, 4, None, 3), (16, 1, 16, 16)],
)
def test_processes_share_the_cores(cores, processes, asked, given, machine):
    machine(cores)
    share_cores(asked, processes)
    assert torch.get_num_threads() == given


def test_processes_of_other_machines_do_not_count(machine, monkeypatch):
    machine(8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    share_cores(None, 64)
    assert torch.get_num_threads() == 3


def test_omp_num_threads_is_a_wish_like_the_option(machine, monkeypatch):
    machine(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    torch.set_num_threads(5)
    share_cores(None, 1)
    assert torch.get_num_threads() == 5
    share_cores(None, 2)
    assert torch.get_num_threads() == 4
