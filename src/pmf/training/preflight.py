"""What can be known to be wrong with a machine before the first step. The trainer and the doctor ask the same."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import torch

from pmf.checkpoint.places import list_checkpoints
from pmf.compilers import missing_for_compilation
from pmf.config.sections import Config, TrainingConfig
from pmf.data.codec import create_codec
from pmf.errors import UserError
from pmf.files import require_reachable


def require_device(training: TrainingConfig) -> None:
    """Each process of this machine has a GPU of its own, which can do the precision asked for; or none has a GPU.

    Raises:
        UserError: too many processes, or another precision is needed.
    """
    if not torch.cuda.is_available():
        return
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        raise UserError(
            f"{processes} processes were started on this machine, which has {gpus} GPU(s); start one per GPU: "
            f"torchrun --nproc_per_node {gpus} or accelerate launch --num_processes {gpus}"
        )
    if training.mixed_precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("training.mixed_precision is bf16, which this GPU does not support; choose fp16 or no")


def require_compiler(training: TrainingConfig) -> None:
    """What ``training.compile: true`` needs: a C++ compiler on CPU; Triton and a C compiler on CUDA.

    Raises:
        UserError: it is not there.
    """
    if training.compile is True and (missing := missing_for_compilation(on_gpu=torch.cuda.is_available())):
        raise UserError(f"training.compile is true, which needs {missing}, or set training.compile to false")


def require_cuda_graph(training: TrainingConfig, processes: int) -> None:
    """What ``training.cuda_graph`` needs: a CUDA device, and one process, as no message can be recorded.

    Raises:
        UserError: it is not so.
    """
    if not training.cuda_graph:
        return
    if not torch.cuda.is_available():
        raise UserError("training.cuda_graph is on, which needs a CUDA device, and there is none; set it to false")
    if processes > 1:
        raise UserError(f"training.cuda_graph is on, which needs a single process, not {processes}; set it to false")


def require_decoder(config: Config) -> str:
    """What decodes images is there, if the run will make any: better now than at the first grid.

    Returns:
        What it is, for people.

    Raises:
        UserError: it is not.
    """
    if not (config.training.sample_every or config.sampling.final_images or config.evaluation.every_images):
        return "not needed: the run makes no images"
    return ", ".join(f"{name} {value}" for name, value in create_codec(config.data).record.items())


def restart_problem() -> str | None:
    """Why processes that torchrun starts again may not find each other, if it would.

    Its agent keeps one store for all attempts, in which the new processes may read the addresses of dead ones.
    """
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) == 0:
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return (
        "torchrun --max-restarts may restart in vain, because its attempts share a store; export "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before it"
    )


def require_storage(training: TrainingConfig, checkpoint_bytes: int, max_steps: int) -> str:
    """The run folder can be made, and its disk holds the checkpoints that are kept and the one being written.

    Args:
        checkpoint_bytes: of one checkpoint.
        max_steps: of the whole run.

    Returns:
        What is needed and what is there, for people.

    Raises:
        UserError: it cannot, or does not.
    """
    run_folder = Path(training.output_dir).absolute()
    place = run_folder
    require_reachable(place, f"training.output_dir {training.output_dir}")
    while not os.path.lexists(place):  # False, and no error, where this user may not look
        place = place.parent
    if not os.path.exists(place):
        raise UserError(
            f"training.output_dir {training.output_dir}: {place} is a link to nothing; remove it or choose another"
        )
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        read_only = place.is_dir() and os.statvfs(place).f_flag & os.ST_RDONLY
        problem = "is on a read-only file system" if read_only else "may not be written to"
        problem = problem if place.is_dir() else "is a file"
        raise UserError(f"training.output_dir {training.output_dir}: {place} {problem}; choose another")
    # A checkpoint is complete before an old one goes.
    written_in_all = math.ceil(max_steps / training.checkpoint_every)
    held_at_once = min(training.keep_checkpoints + 1, written_in_all)
    to_come = max(held_at_once - len(list_checkpoints(run_folder)), 1)
    needed, free = to_come * checkpoint_bytes, shutil.disk_usage(place).free
    told = f"{to_come} checkpoint(s) of {_size(checkpoint_bytes)} to come, {_size(free)} free in {place}"
    if needed > free:
        raise UserError(
            f"training.output_dir {training.output_dir}: the disk is too small: {told}; free {_size(needed - free)}, "
            "lower training.keep_checkpoints or choose another folder"
        )
    return told


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1024
    return f"{count:,.1f} TiB"
