"""Where the tests of this folder run: on the GPU if there is one, and in the ordinary suite on the CPU."""

import pytest
import torch

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # Compilers, drivers and kernels warn of the machine: of its clock, of TF32, of an autotuner's small GPU.
    pytest.mark.filterwarnings("default"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
