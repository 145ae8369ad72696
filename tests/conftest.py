"""One thread per process: the tests' tensors are small, and threads of two processes on two cores block each other."""

import os
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
