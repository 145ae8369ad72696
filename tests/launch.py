"""Starting the commands as users do, on one process or several.

Processes are forked from a server that has done the imports: a start costs a tenth of a second instead of the five that
Python and torch need. :func:`launch` starts from nothing, for the tests that are about launchers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pmf.net.sizes import DIFFUSION_TRANSFORMER, IMF_TRANSFORMER, PIXEL_TRANSFORMER, SIZES, NetworkSize

ROOT = Path(__file__).parents[1]

# Networks of every kind of part and of two or three blocks: a run takes less than half the time that it takes with the
# shipped tiny ones. Processes that are forked here know them too.
_NUMBERS = {"patch_size": 2, "width": 32, "depth": 2, "num_heads": 2}
SIZES["test_pmf_2"] = NetworkSize(PIXEL_TRANSFORMER, **_NUMBERS, head_depth=1, mlp_width=80, bottleneck=16)
SIZES["test_imf_2"] = NetworkSize(IMF_TRANSFORMER, **_NUMBERS, head_depth=1)
SIZES["test_dit_2"] = NetworkSize(DIFFUSION_TRANSFORMER, **_NUMBERS)

NETWORKS = {"digits": "test_pmf_2", "digits_imf": "test_imf_2", "digits_meanflow": "test_dit_2"}
"""By the config of each method on the digits."""

# A run of a second or two on the embedded digits.
TINY = [
    f"model.name={NETWORKS['digits']}",
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

LIMIT = 300
"""Seconds that processes may take before their test fails; alone on a core most take about two."""

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "tests.offline",
    "tests.launch",
    "tests.faults.rank",
    "pmf.training.trainer",
    "pmf.evaluation.command",
    "diffusers.models.autoencoders.autoencoder_kl",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pandas",
    "PIL.Image",
    "pyarrow.parquet",
    "scipy.linalg",
    "timm",
    "torch._dynamo",
    "torch.utils.flop_counter",
    "torch._decomp.decompositions_for_jvp",
    "torch_fidelity",
]
"""Imported by the server of processes: the commands and what they, or torch for them, import late."""


@dataclass
class Ranks:
    """Processes that were started, and the folder with what each prints."""

    processes: list[multiprocessing.process.BaseProcess]
    folder: Path

    def wait(self, limit: float = LIMIT) -> list[int | None]:
        """Exit statuses once all have ended, negative for a signal."""
        deadline = time.monotonic() + limit
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
            assert process.exitcode is not None, f"still running after {limit} s:\n{self.printed()}"
        return [process.exitcode for process in self.processes]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll for something that they do."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline and self.processes[0].is_alive(), self.printed()
            time.sleep(0.01)

    def pid(self, rank: int = 0) -> int:
        """The process id, which is that of the process group too."""
        return self.processes[rank].pid or 0

    def signal(self, number: int, rank: int = 0) -> None:
        """To one rank, and not to its loader workers."""
        os.kill(self.pid(rank), number)

    def printed(self, *streams: str) -> str:
        """What all ranks printed, to ``stdout`` and ``stderr`` unless one is named."""
        ranks = range(len(self.processes))
        files = [self.folder / f"{stream}.{rank}" for rank in ranks for stream in streams or STREAMS]
        return "".join(file.read_text() for file in files if file.exists())


STREAMS = ("stdout", "stderr")


@contextlib.contextmanager
def started(
    target: Callable[[int], None], folder: Path, *, ranks: int = 1, cwd: Path = ROOT, **environment: str
) -> Iterator[Ranks]:
    """Processes that call ``target`` with their rank, with the environment that torchrun would give them.

    Each leads a process group of its own, of which nothing is left in the end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    run = Ranks([], folder)
    try:
        for rank in range(ranks):
            variables = {**os.environ, **environment, **_of_launcher(rank, ranks, port)}
            process = CONTEXT.Process(target=_become, args=(target, rank, cwd, variables, folder))
            process.start()
            run.processes.append(process)
        yield run
    finally:
        for process in run.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()  # if it had not yet made its group
            process.join()


def _of_launcher(rank: int, ranks: int, port: int) -> dict[str, str]:
    if ranks == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def _become(target: Callable[[int], None], rank: int, cwd: Path, environment: Mapping[str, str], folder: Path) -> None:
    os.setsid()
    for stream, name in enumerate(STREAMS, start=1):
        os.dup2(os.open(folder / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)

    import torch

    torch.set_num_threads(1)
    target(rank)


@dataclass(frozen=True)
class Script:
    """``python NAME.py ARGUMENTS`` or ``python -m NAME ARGUMENTS`` within a process that runs already."""

    name: str
    arguments: tuple[str, ...]

    def __call__(self, _rank: int) -> None:
        sys.argv = [self.name, *self.arguments]
        if self.name.endswith(".py"):
            runpy.run_path(str(ROOT / self.name), run_name="__main__")
        else:
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)


def run_command(
    script: str, *arguments: str, ranks: int = 1, cwd: Path = ROOT, timeout: float = LIMIT, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command such as ``train.py`` or ``pmf.convert``, or any script, on several ranks as under torchrun."""
    command = Script(script, arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        started(command, Path(folder), ranks=ranks, cwd=cwd, **environment) as run,
    ):
        statuses = run.wait(timeout)
        status = next((status for status in statuses if status), 0)
        return subprocess.CompletedProcess([script, *arguments], status, run.printed("stdout"), run.printed("stderr"))


@contextlib.contextmanager
def launched(*arguments: str, program: str = sys.executable, **environment: str) -> Iterator[subprocess.Popen]:
    """Python with these arguments, from its start, in a process group of which nothing is left in the end."""
    process = subprocess.Popen(
        [program, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python with these arguments, from its start to its end."""
    with launched(*arguments, **environment) as process:
        printed = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(process.args, process.returncode, *printed)


def torchrun(ranks: int) -> tuple[str, ...]:
    """Arguments that stand before a script and its own."""
    return ("-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone")


def train_tiny(output: Path, *overrides: str, ranks: int = 1) -> str:
    """Train the tiny digits run; returns what it printed."""
    config = str(ROOT / "configs" / "digits.yaml")
    tiny = [*TINY, f"training.output_dir={output}", *overrides]
    result = run_command("train.py", "--config", config, *tiny, ranks=ranks)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr
