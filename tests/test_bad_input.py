"""Bad input to the commands: exactly one line on stderr, exit status 2, no traceback, no step taken.

Each case calls the real command in this process, as ``python train.py ...`` does.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import eval as eval_command
import train as train_command
from pmf.commands import run_command
from pmf.configfile import load_config
from pmf.convert.pytorch_file import read_pytorch
from pmf.errors import UserError
from pmf.training import Trainer
from tests.launch import ROOT, TINY
from tests.launch import run_command as start_command

DIGITS = str(ROOT / "configs" / "digits.yaml")
PARQUET = ("data.kind=parquet", "data.path={tmp}/set")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command line, what lies on disk, and the line that it must print; ``{tmp}`` is the test's folder."""

    overrides: tuple[str, ...] = ()
    yaml: str | None = None
    prepare: Callable[[Path], None] | None = None
    continues: bool = False
    resume: str = "auto"
    message: str


def png(mode: str = "L", side: int = 8, colour: object = 7) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def write_set(folder: Path, images: list[bytes | None], labels: list[int] | None = None, column: str = "label") -> Path:
    """A Parquet set of one file in ``folder``/set; label i is i modulo 10 unless given."""
    (folder / "set").mkdir()
    file = folder / "set" / "train-00000-of-00001.parquet"
    table = {"image": pa.array(images, pa.binary()), column: labels or [i % 10 for i in range(len(images))]}
    pq.write_table(pa.table(table), file)
    return file


def write_file(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def truncated_set(folder: Path) -> None:
    file = write_set(folder, [png()] * 40)
    file.write_bytes(file.read_bytes()[:-50])


def damage_checkpoint(change: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: change(folder / "run" / "checkpoints" / "step_00000001" / "model.safetensors")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


class MakesFolder:
    """When unpickled, makes a folder: a checkpoint with code in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def write_pickle(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1), "payload": MakesFolder(folder / "hacked")}, folder / "w.pt")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
LFS_MESSAGE = "this is a Git LFS pointer, not the file itself; run `git lfs pull` there"
HTML = b"<!DOCTYPE html><html>Sign in</html>"
HTML_MESSAGE = "this is a web page (a login or error page was saved); log in and download the file again"

TRAIN = {
    "key typo": Case(
        overrides=("optimizer.schedul=constant",),
        message="command line: optimizer.schedul=constant: unknown key optimizer.schedul; "
        "did you mean optimizer.schedule?",
    ),
    "a number as a string": Case(
        yaml="training:\n  seed: '10'\ndata:\n  kind: digits\n",
        message="{tmp}/run.yaml:2: training.seed is '10': input should be a valid integer",
    ),
    "duplicate key": Case(
        yaml="optimizer:\n  lr: 1e-3\n  lr: 2e-3\n",
        message="{tmp}/run.yaml:3: optimizer.lr stands here a second time (first at {tmp}/run.yaml:2); remove one",
    ),
    "invalid YAML": Case(
        yaml="training:\n  max_steps: [1\nx\n",
        message="{tmp}/run.yaml:4:1: invalid YAML: expected ',' or ']', but got '<stream end>'",
    ),
    "unset variable": Case(
        yaml="data:\n  path: ${PMF_SURELY_UNSET}/train\n",
        message="{tmp}/run.yaml:2: data.path uses ${PMF_SURELY_UNSET}, which is not set; export it or write the value",
    ),
    "code in YAML": Case(
        yaml="data: !!python/object/apply:os.system ['touch {tmp}/hacked']\n",
        message="{tmp}/run.yaml:1: data has the tag tag:yaml.org,2002:python/object/apply:os.system; configs "
        "hold plain values only",
    ),
    "values that multiply": Case(
        yaml="a: &a [x, x]\nb: &b [*a, *a]\n",
        message="{tmp}/run.yaml:2:8: invalid YAML: configs have no aliases (*a); write the value out",
    ),
    "endless nesting": Case(
        yaml="data: " + "[" * 500,
        message="{tmp}/run.yaml: invalid YAML: nested too deeply; a config has sections and keys",
    ),
    "batch not divisible": Case(
        overrides=("training.micro_batch_size=5",),
        message="command line: training.micro_batch_size=5: training.micro_batch_size is 5, which does not "
        "divide training.global_batch_size 16; nearest divisors: 4, 8",
    ),
    "image size not divisible": Case(
        overrides=("data.image_size=9",),
        message="data.image_size is 9, not a multiple of pmf_tiny_2's patch size 2; use 8 or 10, or a model with "
        "another patch size",
    ),
    "half-life 0": Case(
        overrides=("ema.half_lives_kimg=[0]",),
        message="command line: ema.half_lives_kimg=[0]: ema.half_lives_kimg.0 is 0: input should be greater than 0",
    ),
    "negative learning rate": Case(
        overrides=("optimizer.lr=-1e-3",),
        message="command line: optimizer.lr=-1e-3: optimizer.lr is -0.001: input should be greater than or equal to 0",
    ),
    "learning rate not a number": Case(
        overrides=("optimizer.lr=.nan",),
        message="command line: optimizer.lr=.nan: optimizer.lr is nan: input should be a finite number",
    ),
    "warm-up longer than the run": Case(
        overrides=("optimizer.schedule=warmup_constant", "optimizer.warmup_steps=13"),
        message="command line: optimizer.warmup_steps=13: optimizer.warmup_steps is 13, more than "
        "training.max_steps 12; lower it",
    ),
    "interval upside down": Case(
        overrides=("sampling.interval=[0.7, 0.1]",),
        message="command line: sampling.interval=[0.7, 0.1]: sampling.interval is [0.7, 0.1]; it must be [t_min, "
        "t_max] with t_min < t_max",
    ),
    "precision of another device": Case(
        overrides=("training.mixed_precision=fp16",),
        message="training.mixed_precision is fp16, which needs a CUDA GPU; choose bf16 or no",
    ),
    "other number of classes": Case(
        overrides=("data.num_classes=11",),
        message="command line: data.num_classes=11: data.num_classes is 11; data.kind digits needs "
        "data.num_classes: 10",
    ),
    "no such config": Case(
        yaml="",
        prepare=lambda folder: (folder / "run.yaml").unlink(),
        message="{tmp}/run.yaml: cannot read this config (No such file or directory); known configs: "
        "configs/digits.yaml, configs/pmf_b_16.yaml, configs/pmf_b_32.yaml, configs/pmf_h_16.yaml, "
        "configs/pmf_h_32.yaml, configs/pmf_l_16.yaml, configs/pmf_l_32.yaml",
    ),
    "missing path": Case(
        overrides=PARQUET,
        message="{tmp}/set: data.path does not exist; give the folder that holds data/train-*.parquet",
    ),
    "empty glob": Case(
        overrides=("data.kind=parquet", "data.path={tmp}/*.parquet"),
        message="{tmp}/*.parquet: no Parquet files match {tmp}/*.parquet; {tmp} holds nothing; correct data.path "
        "or data.split",
    ),
    "truncated Parquet": Case(
        overrides=PARQUET,
        prepare=truncated_set,
        message="{tmp}/set/train-00000-of-00001.parquet: this Parquet file is truncated (no footer at its end); "
        "download it again, e.g. with `hf download REPO --repo-type dataset`",
    ),
    "LFS pointer as Parquet": Case(
        overrides=PARQUET,
        prepare=write_file("set/train-0.parquet", LFS),
        message="{tmp}/set/train-0.parquet: " + LFS_MESSAGE,
    ),
    "web page as Parquet": Case(
        overrides=PARQUET,
        prepare=write_file("set/train-0.parquet", HTML),
        message="{tmp}/set/train-0.parquet: " + HTML_MESSAGE,
    ),
    "incomplete download": Case(
        overrides=PARQUET,
        prepare=write_file("set/train-00003-of-00294.parquet", b""),
        message="{tmp}/set/train-00000-of-00294.parquet: this file is missing, and of the 294 files only 1 are "
        "there; finish the download, or give data.path as a glob of those wanted",
    ),
    "wrong column": Case(
        overrides=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 40, column="fine_label"),
        message="{tmp}/set/train-00000-of-00001.parquet: there is no column 'label' (data.label_column); columns "
        "there: image, fine_label",
    ),
    "no images in the column": Case(
        overrides=PARQUET,
        prepare=lambda folder: write_set(folder, [b"junk"] * 40),
        message="{tmp}/set/train-00000-of-00001.parquet, row 0: this image cannot be decoded: not one of JPEG, "
        "PNG, WEBP, GIF, BMP, TIFF, PPM; nor can the 7 after it; check data.path and data.image_column, "
        "or download the files again",
    ),
    "too many corrupt images": Case(
        overrides=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 20 + [png()[:-30]] * 20),
        message="{tmp}/set/train-00000-of-00001.parquet, row 27: this image cannot be decoded: image file is "
        "truncated; it is corrupt image number 1 and data.max_corrupt_fraction allows 0; "
        "download the files again or raise it",
    ),
    "fewer images than a batch": Case(
        overrides=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 15),
        message="training.global_batch_size is 16, but the data set has only 15 images; set it to 15 or less",
    ),
    "label out of range": Case(
        overrides=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 40, [10] * 40),
        message="{tmp}/set/train-00000-of-00001.parquet, row group 0: label 10 is outside 0 ... 9; correct "
        "data.num_classes, data.label_column or data.split",
    ),
    "label -1": Case(
        overrides=PARQUET,
        prepare=lambda folder: write_set(folder, [png()] * 40, [-1] * 40),
        message="{tmp}/set/train-00000-of-00001.parquet, row group 0: label -1 is outside 0 ... 9 (the labels of "
        "this split are not published?); correct data.num_classes, data.label_column or data.split",
    ),
    "resume finds nothing": Case(
        resume="{tmp}/nowhere",
        message="--resume {tmp}/nowhere: there is no such folder; give auto, never, or a checkpoint folder",
    ),
    "resume never": Case(
        continues=True,
        resume="never",
        message="{tmp}/run: holds checkpoints and --resume is never; nothing is overwritten, so choose another "
        "training.output_dir or delete the folder",
    ),
    "truncated checkpoint": Case(
        continues=True,
        prepare=damage_checkpoint(lambda file: file.write_bytes(file.read_bytes()[:-9])),
        resume="{tmp}/run/checkpoints/step_00000001",
        message="{tmp}/run/checkpoints/step_00000001: model.safetensors has N bytes instead of N; "
        "use an older checkpoint (--resume PATH)",
    ),
    "altered checkpoint": Case(
        continues=True,
        prepare=damage_checkpoint(flip_a_bit),
        resume="{tmp}/run/checkpoints/step_00000001",
        message="{tmp}/run/checkpoints/step_00000001: model.safetensors does not match its sha256; use an older "
        "checkpoint (--resume PATH)",
    ),
    "no intact checkpoint": Case(
        continues=True,
        prepare=damage_checkpoint(Path.unlink),
        message="{tmp}/run: none of its 1 checkpoints is intact; start again in another training.output_dir, or "
        "repair one and name it with --resume PATH",
    ),
    "another network": Case(
        continues=True,
        overrides=("data.image_size=16",),
        resume="{tmp}/run",
        message="{tmp}/run/checkpoints/step_00000001: weights of another network: position_embedding is (1, 36, "
        "64) there and (1, 84, 64) here; check model.name, data.image_size and data.num_classes",
    ),
    "average that is not there": Case(
        continues=True,
        overrides=("ema.half_lives_kimg=[77]", "sampling.ema=77"),
        resume="{tmp}/run",
        message="{tmp}/run/checkpoints/step_00000001: has no average '77'; in the ema section choose from: 0.05, 10",
    ),
    "disk too small": Case(
        overrides=("training.keep_checkpoints=1000000000", "training.max_steps=2000000000"),
        message="training.output_dir {tmp}/run: the disk is too small: 333333334 checkpoint(s) of SIZE to come, "
        "SIZE free in {tmp}; free SIZE, lower training.keep_checkpoints or choose another folder",
    ),
    "run folder is a file": Case(
        overrides=("training.output_dir={tmp}/file/run",),
        prepare=write_file("file", b""),
        message="training.output_dir {tmp}/file/run: {tmp}/file is a file; choose another",
    ),
    "no compiler": Case(
        overrides=("training.compile=true",),
        message="training.compile is true, which needs a compiler, and {tmp}/no-compiler is not on the PATH; "
        "install one, name it in CXX, or set training.compile to false",
    ),
}

# The checkpoint and what lies there; {run} is a finished run.
SAMPLE = {
    "LFS pointer as weights": Case(
        overrides=("{tmp}/w.safetensors",),
        prepare=write_file("w.safetensors", LFS),
        message="{tmp}/w.safetensors: " + LFS_MESSAGE,
    ),
    "web page as weights": Case(
        overrides=("{tmp}/w.safetensors",),
        prepare=write_file("w.safetensors", HTML),
        message="{tmp}/w.safetensors: " + HTML_MESSAGE,
    ),
    "LFS pointer as official weights": Case(
        overrides=("{tmp}/w.pt", "--config", DIGITS),
        prepare=write_file("w.pt", LFS),
        message="{tmp}/w.pt: " + LFS_MESSAGE,
    ),
    "pickle without a recipe": Case(
        overrides=("{tmp}/w.pt",),
        prepare=write_pickle,
        message="{tmp}/w.pt: is not a .safetensors file; an official checkpoint is read with its recipe "
        "(eval.py sample --config configs/NAME.yaml) or converted (python -m pmf.convert import)",
    ),
    "pickle": Case(
        overrides=("{tmp}/w.pt", "--config", DIGITS),
        prepare=write_pickle,
        message="{tmp}/w.pt: holds more than tensors (posix.mkdir); if you trust where it comes from, "
        "python -m pmf.convert import --allow-pickle loads it and runs what it asks for",
    ),
    "missing": Case(
        overrides=("{tmp}/nowhere",), message="--checkpoint {tmp}/nowhere: there is no such file or folder"
    ),
    "average that is not there": Case(
        overrides=("{run}", "--ema", "77"),
        message="{run}/checkpoints/step_00000001: has no average '77'; choose one of: 0.05, 10, online",
    ),
    "label out of range": Case(overrides=("{run}", "--labels", "3,10"), message="--labels 3,10: 10 is not in 0 ... 9"),
}


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    Trainer(load_config(DIGITS, [*TINY, "training.max_steps=1", f"training.output_dir={folder}"])).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls a command that must end with status 2; returns what it printed to stderr."""

    def call(main: Callable[[], None], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_command(main)
        assert left.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize("name", TRAIN)
def test_train(name, tmp_path, finished_run, fails, monkeypatch):
    case = TRAIN[name]
    if case.message.startswith("training.mixed_precision") and torch.cuda.is_available():
        pytest.skip("there is a GPU, which can do this")
    if case.continues:
        shutil.copytree(finished_run, tmp_path / "run")
    config = DIGITS
    if case.yaml is not None:
        config = str(tmp_path / "run.yaml")
        Path(config).write_text(case.yaml.replace("{tmp}", str(tmp_path)))
    if case.prepare:
        case.prepare(tmp_path)
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, str(tmp_path / "no-compiler"))
    overrides = [*TINY, "training.output_dir={tmp}/run", *case.overrides]
    arguments = [text.replace("{tmp}", str(tmp_path)) for text in ("--resume", case.resume, *overrides)]
    printed = fails(train_command.main, "--config", config, *arguments).replace(str(tmp_path), "{tmp}")
    # A mistake found in the middle of a run stands below its progress bar.
    lines = [line for line in printed.lstrip("\r").splitlines(keepends=True) if "step/s]" not in line]
    printed = re.sub(r"[\d.,]+ [MGT]iB", "SIZE", "".join(lines))
    printed = re.sub(r"\d+ bytes instead of \d+", "N bytes instead of N", printed)
    assert printed == f"error: {case.message}\n"
    if not case.continues:
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name, tmp_path, finished_run, fails):
    case = SAMPLE[name]
    if case.prepare:
        case.prepare(tmp_path)
    arguments = [text.replace("{tmp}", str(tmp_path)).replace("{run}", str(finished_run)) for text in case.overrides]
    output = tmp_path / "images"
    printed = fails(
        eval_command.main, "sample", "--output", str(output), "--num-images", "2", "--checkpoint", *arguments
    )
    printed = printed.replace(str(tmp_path), "{tmp}").replace(str(finished_run), "{run}")
    assert printed == f"error: {case.message}\n"
    assert not output.exists()
    assert not (tmp_path / "hacked").exists()


def test_a_pickle_runs_only_when_that_is_asked_for(tmp_path):
    """The file of the cases above is armed: with the flag it does what it asks for."""
    write_pickle(tmp_path)
    with pytest.raises(UserError):
        read_pytorch(tmp_path / "w.pt", allow_pickle=True)
    assert (tmp_path / "hacked").exists()


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
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    of_torchrun = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**of_torchrun, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    batch = "training.global_batch_size=48"  # which both numbers of processes divide
    overrides = [*TINY, batch, f"training.output_dir={tmp_path}/run", "training.mixed_precision=bf16"]
    assert fails(train_command.main, "--config", DIGITS, *overrides) == f"error: {message}\n"


def test_two_processes_say_it_once(tmp_path):
    nothing = ("data.kind=parquet", f"data.path={tmp_path}")
    result = start_command(str(ROOT / "train.py"), "--config", DIGITS, *TINY, *nothing, ranks=2, cwd=tmp_path)
    lines = result.stderr.splitlines()
    assert result.returncode != 0
    said = [line for line in lines if line.startswith("error: ")]
    patterns = f"{tmp_path}/data/train-*.parquet or {tmp_path}/train-*.parquet"
    message = f"no Parquet files match {patterns}; {tmp_path} holds nothing; correct data.path or data.split"
    assert said == [f"error: {tmp_path}: {message}"], result.stderr
    # torchrun reports the failed workers with a traceback of its own, and of nobody else.
    assert not any("/pmf/" in line or 'train.py", line' in line for line in lines), result.stderr
