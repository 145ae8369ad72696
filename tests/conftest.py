"""One thread per process: the tests' tensors are small, and threads of two processes on two cores block each other."""

import os
import sys
from multiprocessing import forkserver

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.launch import PRELOADED

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _server_of_processes():
    """Started before the library starts one for its loaders, which would not have done the imports: there is one."""
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """What a trainer or a command in this process leaves in accelerate's global state goes with the test."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        assert not PartialState._shared_state
