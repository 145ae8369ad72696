"""Whether code can be generated on this machine: what torch.compile and Triton's kernels need, and what to install."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path


def missing_for_compilation(*, on_gpu: bool) -> str | None:
    """What torch.compile lacks on this machine, and what to do; None where it has all it needs."""
    if on_gpu and importlib.util.find_spec("triton") is None:
        return "Triton on a GPU, which is not installed; install triton"
    variable, usual = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++", "clang++"))
    wanted = [os.environ[variable]] if os.environ.get(variable) else list(usual)
    if not any(shutil.which(name) for name in wanted):
        return f"a compiler, and {' or '.join(wanted)} is not on the PATH; install one, name it in {variable}"
    if on_gpu and not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python.h, with which Triton starts its kernels; install Python's headers (python3-dev)"
    return None


HAS_TRITON = missing_for_compilation(on_gpu=True) is None
"""Whether kernels written in Triton can be started; they build a small library in C at first use."""
