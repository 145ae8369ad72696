"""Starting the commands as users do, on one process or several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A run of seconds on the embedded digits.
TINY = [
    "training.global_batch_size=16",
    "training.micro_batch_size=8",
    "training.max_steps=12",
    "training.num_threads=1",
    "training.log_every=2",
    "training.sample_every=0",
    "training.checkpoint_every=6",
    "sampling.final_images=0",
    "ema.half_lives_kimg=[0.05, 10]",
    "evaluation.every_images=0",
]


def run_command(
    *arguments: str, ranks: int = 1, restarts: int = 0, cwd: Path = ROOT, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess:
    """Run a root command such as ``train.py`` (or any script), under torchrun for several ranks."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
        launcher += [f"--max-restarts={restarts}"]
    return subprocess.run(
        [*launcher, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def train_tiny(output: Path, *overrides: str, ranks: int = 1, arguments: tuple[str, ...] = ()) -> str:
    """Train the tiny digits run; returns what it printed."""
    result = run_command(
        str(ROOT / "train.py"),
        "--config",
        str(ROOT / "configs" / "digits.yaml"),
        *arguments,
        *TINY,
        f"training.output_dir={output}",
        *overrides,
        ranks=ranks,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr
