"""One micro-batch size, tried: real optimizer steps in a process of its own, whose end gives all memory back.

    python -m pmf.auto_batch.candidate CONFIG RESULT NUM_STEPS

Every part is the trainer's: derivative, backward, optimizer, averages, perceptual networks, DDP. Only the images are
made up, so that neither a data set nor its decoding has a part in the figures.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pmf.commands import run_command
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.data.codec import create_codec
from pmf.data.loader import Batch
from pmf.data.options import SOURCES
from pmf.files import complete_or_absent
from pmf.training.trainer import Trainer

WARM_UP_STEPS = 2  # compiled blocks are compiled in the first, and once more in the second for other numbers of rows
MADE_UP = "made up"
"""A kind of data set for trials: what the run's codec takes, without reading anything."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one rank found.

    Attributes:
        peak: bytes that the process needed: on a GPU those that torch's allocator reserved, on a CPU resident memory.
        limit: bytes that it could have had: the device without what the driver and others hold, or its part of the
            memory that was free on the machine.
        seconds: a step takes; 0 if out of memory.
    """

    out_of_memory: bool
    peak: int = 0
    limit: int = 0
    seconds: float = 0.0


def main() -> None:
    """Try and write the result; running out of memory is a result."""
    config_path, result_path, steps = sys.argv[1:]
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(load_config(config_path), folder, int(steps))
    except (torch.OutOfMemoryError, MemoryError):
        result = Result(out_of_memory=True)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU allocator has no exception of its own
            raise
        result = Result(out_of_memory=True)
    with complete_or_absent(Path(result_path)) as temporary:
        temporary.write_text(json.dumps(asdict(result)))
    if result.out_of_memory:
        os._exit(1)  # the other ranks may wait for this one in a collective; do not wait for them


def measure(config: Config, folder: str, steps: int) -> Result:
    """Run the first steps of a run, on made-up images.

    Args:
        config: the run's.
        folder: for what the trial writes; the run's own is not touched.
        steps: more than WARM_UP_STEPS.
    """
    with _for_measuring(config, folder) as trial:
        return _measure(trial, steps)


def _measure(config: Config, steps: int) -> Result:
    available = available_memory()
    trainer = Trainer(config, resume="never")
    device = trainer.world.device
    seconds = []
    for step in range(steps):
        batches = list(_batches(config, trainer.micro_batch_size, trainer.accumulation, step))
        _wait(device)
        started = time.perf_counter()
        trainer.train_step(batches)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    typical = statistics.median(seconds[WARM_UP_STEPS:])
    if device.type != "cuda":
        return Result(out_of_memory=False, peak=_peak_resident(), limit=available, seconds=typical)
    free, _ = torch.cuda.mem_get_info(device)
    return Result(
        out_of_memory=False,
        peak=torch.cuda.max_memory_reserved(device),
        limit=free + torch.cuda.memory_reserved(device),
        seconds=typical,
    )


@contextmanager
def _for_measuring(config: Config, folder: str) -> Iterator[Config]:
    """The same run on made-up images, in a folder of its own, with nothing but steps in it.

    The kind of its data is in the table of kinds until the trial ends.
    """
    own = SOURCES[config.data.kind]
    data = config.data.model_copy(
        update={"kind": MADE_UP, "path": None, "num_images": config.training.global_batch_size, "num_workers": 0}
    )
    training = config.training.model_copy(
        update={"output_dir": folder, "max_steps": 10**9, "epochs": None, "sample_every": 0}
    )
    sampling = config.sampling.model_copy(update={"final_images": 0})
    evaluation = config.evaluation.model_copy(update={"every_images": 0})
    sections = {"data": data, "training": training, "sampling": sampling, "evaluation": evaluation}
    SOURCES[MADE_UP] = replace(SOURCES["synthetic"], codec=own.codec, space=own.space)
    try:
        yield config.model_copy(update=sections)
    finally:
        del SOURCES[MADE_UP]


def _batches(config: Config, size: int, count: int, step: int) -> Iterator[Batch]:
    data, codec = config.data, create_codec(config.data)
    for _ in range(count):
        labels = torch.randint(data.num_classes, (size,))
        yield Batch(codec.example(size), labels, torch.arange(size), step)


def available_memory() -> int:
    """Bytes of main memory that are free for each of the processes on this machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kibibytes,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kibibytes * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent ends, however that is
    os._exit(1)


if __name__ == "__main__":
    run_command(main)
