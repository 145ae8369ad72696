"""What this machine cannot do: precision, processes, disk, compiler."""

from __future__ import annotations

import pytest
import torch

import train as train_command
from tests.bad_input.cases import DIGITS, Case, each, png, write_file
from tests.launch import ROOT, TINY, run_command

CASES = {
    "disk too small": Case(
        arguments=("training.keep_checkpoints=1000000000", "training.max_steps=2000000000"),
        message="training.output_dir {tmp}/run: the disk is too small: 333333334 checkpoint(s) of SIZE to come, "
        "SIZE free in {tmp}; free SIZE, lower training.keep_checkpoints or choose another folder",
    ),
    "run folder is a file": Case(
        arguments=("training.output_dir={tmp}/file/run",),
        prepare=write_file("file", b""),
        message="training.output_dir {tmp}/file/run: {tmp}/file is a file; choose another",
    ),
    "no compiler": Case(
        arguments=("training.compile=true",),
        message="training.compile is true, which needs a compiler, and {tmp}/no-compiler is not on the PATH; "
        "install one, name it in CXX, or set training.compile to false",
    ),
}


@each(CASES)
def test_train(case, training_refused):
    if case.message.startswith("training.mixed_precision") and torch.cuda.is_available():
        pytest.skip("there is a GPU, which can do this")
    assert training_refused(case) == case.message


@pytest.mark.parametrize(
    ("processes", "bf16", "message"),
    [
        (
            "3",
            True,
            "3 processes were started on this machine, which has 2 GPU(s); start one per GPU: "
            "torchrun --nproc_per_node 2 or accelerate launch --num_processes 2",
        ),
        ("2", False, "training.mixed_precision is bf16, which this GPU does not support; choose fp16 or no"),
    ],
)
def test_what_this_machines_gpus_cannot_do(processes, bf16, message, tmp_path, fails, monkeypatch):
    # What torch says of two GPUs, with or without bf16; nothing may touch them before the line is printed.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    of_torchrun = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**of_torchrun, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    batch = "training.global_batch_size=48"  # which both numbers of processes divide
    overrides = [*TINY, batch, f"training.output_dir={tmp_path}/run", "training.mixed_precision=bf16"]
    assert fails(train_command.main, "--config", DIGITS, *overrides) == f"error: {message}\n"


def test_two_processes_say_it_once(tmp_path):
    nothing = ("data.kind=parquet", f"data.path={tmp_path}")
    result = run_command(str(ROOT / "train.py"), "--config", DIGITS, *TINY, *nothing, ranks=2, cwd=tmp_path)
    lines = result.stderr.splitlines()
    assert result.returncode != 0
    said = [line for line in lines if line.startswith("error: ")]
    patterns = f"{tmp_path}/data/train-*.parquet or {tmp_path}/train-*.parquet"
    message = f"no Parquet files match {patterns}; {tmp_path} holds nothing; correct data.path or data.split"
    assert said == [f"error: {tmp_path}: {message}"], result.stderr
    # torchrun reports the failed workers with a traceback of its own, and of nobody else.
    assert not any("/pmf/" in line or 'train.py", line' in line for line in lines), result.stderr


def test_what_the_main_rank_alone_finds_ends_both_with_one_line(finished_run, tmp_path):
    """A folder of other images, and a folder that may not be read: the other rank is not left waiting."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.png").write_bytes(png())
    (tmp_path / "file").write_text("in the way")
    for output, message in (
        ("used", "is not empty and holds no sampling.json; choose another folder"),
        ("file", "cannot be written (File exists); choose another folder"),
    ):
        arguments = ("--checkpoint", str(finished_run), "--output", str(tmp_path / output), "--num-images", "4")
        result = run_command(str(ROOT / "eval.py"), "sample", *arguments, ranks=2)
        assert result.returncode == 2
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert errors == [f"error: {tmp_path / output}: {message}"]
        assert "Traceback" not in result.stderr
