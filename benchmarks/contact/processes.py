"""``train.py`` as people start it: compiled, killed after a checkpoint, and resumed, as real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.contact.setting import Report, Setting
from benchmarks.contact.steps import NO_PERCEPTUAL, run_config
from pmf.checkpoint.places import list_checkpoints
from pmf.config.sections import Config
from pmf.config.yaml_file import save_config

ROOT = Path(__file__).parents[2]
CHECKPOINT_EVERY = 3
STEPS_AFTER_RESUME = 4


def measure(setting: Setting, report: Report) -> None:
    """Start a run, kill it (SIGKILL) after its first checkpoint, start it again and let it end.

    Raises:
        RuntimeError: the first process ended by itself, or the second did not go on from the checkpoint to the end.
    """
    run, config_file = setting.scratch / "train", setting.scratch / "train.yaml"
    config = _config(setting, run)
    save_config(config, config_file)
    report(global_batch=config.training.global_batch_size, compiled=config.training.compile)

    started = time.perf_counter()
    with _train(config_file) as process:  # it writes where this stage does, which is kept if it hangs
        while not list_checkpoints(run):
            if process.poll() is not None:
                raise RuntimeError(f"train.py ended with status {process.returncode}")
            time.sleep(0.05)
        process.kill()
    report(to_first_checkpoint_s=time.perf_counter() - started)

    saved = _last_step(run)
    last = saved + STEPS_AFTER_RESUME
    started = time.perf_counter()
    with (setting.scratch / "second.log").open("w+") as log, _train(config_file, last, log=log.fileno()) as process:
        status = process.wait()
    printed = Path(log.name).read_text()
    report(killed_after_step=saved, resume_to_end_s=time.perf_counter() - started, status_after_resume=status)
    if status or f"(step {saved} of {last})" not in printed or _last_step(run) != last:
        raise RuntimeError(f"the resumed train.py did not go from step {saved} to {last}:\n{_tail(log.name)}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = ("step", "loss_u", "loss_v", "grad_norm", "images_per_second", "skipped", "mfu")
    report(metrics=[{key: line[key] for key in wanted if key in line} for line in lines])


def _config(setting: Setting, run: Path) -> Config:
    micro_batch = setting.micro_batch(64)
    config = run_config(setting, micro_batch, compiled=True, perceptual=NO_PERCEPTUAL)
    training = config.training.model_copy(
        update={
            "output_dir": str(run),
            "global_batch_size": 4 * micro_batch,
            "checkpoint_every": CHECKPOINT_EVERY,
            "log_every": 1,
            "sample_every": 0,
        }
    )
    sampling = config.sampling.model_copy(update={"final_images": 0})
    workers = min(8, os.cpu_count() or 1) if setting.on_gpu else 0
    data = config.data.model_copy(update={"num_workers": workers})
    return config.model_copy(update={"training": training, "sampling": sampling, "data": data})


def _train(config_file: Path, max_steps: int | None = None, *, log: int | None = None) -> subprocess.Popen[bytes]:
    override = [f"training.max_steps={max_steps}"] if max_steps else []
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--config", str(config_file), *override],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def _last_step(run: Path) -> int:
    return int(list_checkpoints(run)[-1].name.removeprefix("step_"))


def _tail(log: str) -> str:
    return "\n".join(Path(log).read_text().splitlines()[-30:])
