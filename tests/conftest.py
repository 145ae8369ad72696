"""One thread per process: the tests' tensors are small, and threads of two processes on two cores block each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
