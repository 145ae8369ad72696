"""What a run stands on: versions, hardware, the commit of this library. Kept in ``environment.json``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RECORDED_PACKAGES = ("torch", "accelerate", "numpy", "pillow", "pyarrow", "safetensors")
ANSWER = 10.0
"""Seconds that git may take to say where it stands."""


def environment_record(*, device: str, world_size: int, num_images: int, max_steps: int) -> dict[str, Any]:
    """Plain values.

    Args:
        device: its type, as torch names it; of a GPU, the model is recorded.
        world_size: processes.
        num_images: in the data set.
        max_steps: of the whole run.
    """
    return {
        "command": sys.argv,
        "uv": "UV" in os.environ,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in ("pmf", *RECORDED_PACKAGES)},
        "commit": library_commit(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "world_size": world_size,
        "local_world_size": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "num_images": num_images,
        "max_steps": max_steps,
    }


def library_commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """The git commit that this library is run from, with ``-dirty`` where its files differ from it.

    Args:
        package: the folder ``pmf`` of the library.

    Returns:
        None where it is not run from a checkout of its own, or git cannot tell.
    """
    root = package.parents[1]
    if not (root / ".git").exists() or package != root / "src" / "pmf":
        return None  # an installed library; a repository around it is somebody else's
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's are of its own
    try:
        found = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=ANSWER, env=own
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return found.stdout.strip() or None
