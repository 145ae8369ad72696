"""What file systems refuse: told in one line that fits the kind of error; and names that no terminal can show."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

import pmf.tensors
from pmf.checkpoint.official.pytorch_file import write_pytorch
from pmf.checkpoint.places import list_checkpoints
from pmf.checkpoint.saved_weights import save_weights
from pmf.checkpoint.storage import Checkpoint, save_checkpoint
from pmf.commands import run_command as as_command
from pmf.config.sections import as_plain
from pmf.config.yaml_file import load_config
from pmf.convert import main as convert
from pmf.data.source import create_source
from pmf.errors import UserError
from pmf.files import complete_or_absent, flush, printable, write_json, writing
from pmf.generation.pictures import save_png
from pmf.training.metrics import MetricsLog
from pmf.training.preflight import require_storage
from pmf.training.run_folder import RunFolder
from pmf.training.trackers import Trackers
from tests.launch import ROOT, TINY, Script, started

DIGITS = str(ROOT / "configs" / "digits.yaml")
FULL = (errno.ENOSPC, errno.EDQUOT)
OTHERS = {
    errno.EIO: "the disk or the connection to it fails",
    errno.EFBIG: "ulimit -f",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the symbolic link",
    errno.ESTALE: "mount it again",
    errno.EMFILE: "ulimit -n",
    errno.EROFS: "choose another",
    errno.EACCES: "choose another",
    errno.ENOTDIR: "choose another",
}


def failing(number: int):
    """A call that storage refuses."""

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [*FULL, *OTHERS], ids=errno.errorcode.get)
def test_room_is_asked_for_where_there_is_none_and_nowhere_else(number, tmp_path):
    with pytest.raises(UserError) as error, writing(f"--output {tmp_path}"):
        failing(number)()
    assert str(error.value).startswith(f"--output {tmp_path}: cannot be written ({os.strerror(number)}); ")
    assert ("make room" in str(error.value)) == (number in FULL)
    assert OTHERS.get(number, "make room") in str(error.value)


def digits_state(step: int):
    return {"step": step, "config": as_plain(load_config(DIGITS))}


@pytest.mark.parametrize("number", [*FULL, errno.EIO, errno.EFBIG, errno.EROFS], ids=errno.errorcode.get)
def test_a_checkpoint_that_cannot_be_written(number, tmp_path, monkeypatch):
    """The library of safetensors reports the system's error as one of its own."""
    tensors = {"model": {"a": torch.zeros(3)}}
    save_checkpoint(tmp_path, Checkpoint(tensors=tensors, state=digits_state(1)), keep=3)

    def refuse(*args, **kwargs):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    monkeypatch.setattr(pmf.tensors, "save_file", refuse)
    with pytest.raises(UserError) as error:
        save_checkpoint(tmp_path, Checkpoint(tensors=tensors, state=digits_state(2)), keep=3)
    assert ("make room" in str(error.value)) == (number in FULL)
    assert f"({os.strerror(number)}); those before it are intact: " in str(error.value)
    assert str(error.value).endswith(" and start the same command again")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def full_disk(path: Path) -> None:
    """Whatever is written to this name finds no room."""
    path.symlink_to("/dev/full")


def test_every_writer_says_that_the_disk_is_full(tmp_path, monkeypatch):
    config, run = load_config(DIGITS), tmp_path / "run"
    run.mkdir()
    full_disk(run / "metrics.jsonl")
    log = MetricsLog.__new__(MetricsLog)  # as if the disk had filled up since the run began
    log.path, log._trackers = run / "metrics.jsonl", Trackers(run, config, 0, pytest.fail)
    full_disk(run / ".incomplete_config.yaml")
    full_disk(tmp_path / f".a.png.{os.getpid()}")
    for write, place in (
        (lambda: log.write({"step": 1}), run / "metrics.jsonl"),
        (lambda: RunFolder(run).open(config, {}), run),
        (lambda: save_png(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / "a.png"), tmp_path / "a.png"),
    ):
        with pytest.raises(UserError, match=r"\(No space left on device\); make room") as error:
            write()
        assert str(place) in str(error.value)
    full_disk(tmp_path / ".incomplete_w.pt")
    with pytest.raises(OSError, match="No space left on device"):  # torch itself complains of a count of bytes
        write_pytorch(tmp_path / "w.pt", {"a": torch.zeros(100_000)})
    assert not (tmp_path / "w.pt").exists()


def test_a_note_that_cannot_be_written_does_not_change_how_a_stopped_run_ends(tmp_path):
    full_disk(tmp_path / ".incomplete_preempted")
    RunFolder(tmp_path).mark_preempted(3)
    assert not (tmp_path / "preempted").exists()


@pytest.mark.parametrize("number", [*FULL, *OTHERS, errno.ENOENT], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", [None, "/data/x"])
def test_what_nobody_expected_is_one_line_if_storage_explains_it(number, name, capsys):
    def main() -> None:
        raise OSError(number, os.strerror(number), *([name] if name else []))

    unexplained = number in (errno.ENOENT, errno.ENOTDIR)  # may be a mistake of the program
    if unexplained or (name is None and number in (errno.EROFS, errno.EACCES)):
        with pytest.raises(OSError, match=os.strerror(number)):
            as_command(main)
        return
    with pytest.raises(SystemExit) as left:
        as_command(main)
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {f'{name}: ' if name else ''}{os.strerror(number)}; ")
    assert printed.count("\n") == 1
    assert ("make room" in printed) == (number in FULL)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_without_locks_a_run_starts_with_a_warning(number, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", failing(number))
    said: list[str] = []
    RunFolder(tmp_path).lock(said.append)
    assert len(said) == 1 and f"this file system has no locks ({os.strerror(number)})" in said[0]
    RunFolder(tmp_path).lock(said.append)
    assert f"(the last was process {os.getpid()} on " in said[1]


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", failing(errno.EIO))
    with pytest.raises(UserError, match=r"cannot be written \(Input/output error\); the disk"):
        RunFolder(tmp_path).lock(pytest.fail)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_flushes_of_folders_everything_is_written(number, tmp_path, monkeypatch):
    sync = os.fsync
    flushed: list[bool] = []

    def fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append(folder)
        failing(number)() if folder else sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "record.json", {"a": 1})
    assert json.loads((tmp_path / "record.json").read_text()) == {"a": 1}
    assert flush(tmp_path) == os.strerror(number)
    save_checkpoint(tmp_path, Checkpoint(tensors={"model": {"a": torch.zeros(3)}}, state=digits_state(1)), keep=1)
    assert len(list_checkpoints(tmp_path)) == 1
    assert set(flushed) == {True, False}
    monkeypatch.setattr(os, "fsync", failing(number))  # for a file the same answer is a failure
    with pytest.raises(OSError, match=os.strerror(number)), complete_or_absent(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert not (tmp_path / "file").exists()


def test_a_flush_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        flush(tmp_path)


def test_a_leftover_that_cannot_be_removed_and_modes_that_cannot_be_set_do_not_end_a_run(tmp_path, monkeypatch):
    """A network file system keeps what another process has open; FAT has one mode for all files."""
    left_over = tmp_path / "checkpoints" / ".incomplete_removed_step_00000001"
    left_over.mkdir(parents=True)
    (left_over / ".nfs0001").write_text("")
    remove = os.unlink

    def unlink(path, *args, **kwargs):
        failing(errno.EBUSY)() if ".nfs" in os.fspath(path) else remove(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(Path, "chmod", failing(errno.EPERM))
    monkeypatch.setattr(pmf.tensors, "save_file", _save_with_the_mode_there)
    save_checkpoint(tmp_path, Checkpoint(tensors={"model": {"a": torch.zeros(3)}}, state=digits_state(2)), keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002"]


def _save_with_the_mode_there(tensors, path, metadata):
    from safetensors.torch import save

    path.write_bytes(save(tensors, metadata))


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


LONG = "n" * 300
STUCK = {
    "loop": (loop, "Too many levels of symbolic links; remove the symbolic link that leads back to itself"),
    "long": (lambda folder: folder / LONG, "File name too long; give a shorter name"),
}


@pytest.mark.parametrize("below", ["", "/below"])
@pytest.mark.parametrize("kind", STUCK)
def test_a_path_that_leads_nowhere_is_told_as_what_it_is(kind, below, tmp_path):
    make, words = STUCK[kind]
    path = Path(f"{make(tmp_path)}{below}")
    training = load_config(DIGITS, [f"training.output_dir={path}"]).training
    data = load_config(DIGITS, [f"data.path={path}", "data.kind=imagefolder"]).data
    for call, what in (
        (lambda: require_storage(training, 1, 1), f"training.output_dir {path}"),
        (lambda: RunFolder(tmp_path).resume_point(str(path), pytest.fail), f"--resume {path}"),
        (lambda: create_source(data, 0), f"{path}: data.path"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value) == f"{what}: {words}"


@pytest.mark.parametrize("kind", STUCK)
def test_a_result_that_cannot_be_written_there(kind, tmp_path):
    make, words = STUCK[kind]
    with pytest.raises(UserError, match=words.partition("; ")[2]), writing("--output"):
        write_json(make(tmp_path) / "x.json", {})


def test_a_run_folder_that_is_a_link_to_nothing(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    training = load_config(DIGITS, [f"training.output_dir={tmp_path}/link"]).training
    with pytest.raises(UserError, match="/link is a link to nothing; remove it or choose another"):
        require_storage(training, 1, 1)


def test_records_are_strict_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "r.json", {name: [name, ("ok é", 3)], "nested": {"a": name}})
    told = json.loads((tmp_path / "r.json").read_bytes().decode("utf-8", "strict"))
    assert told == {"caf\\udce9": ["caf\\udce9", ["ok é", 3]], "nested": {"a": "caf\\udce9"}}
    json.dumps(told, ensure_ascii=False).encode("utf-8", "strict")
    assert printable("ok é") == "ok é"


@dataclass(frozen=True)
class OnStrictTerminal:
    """A command whose terminal takes valid text in one encoding and nothing else."""

    script: Script
    encoding: str

    def __call__(self, rank: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(encoding=self.encoding, errors="strict")
        self.script(rank)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_are_not_utf8_are_printed_and_used(encoding, tmp_path):
    base = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    for number in range(20):
        folder = Path(base) / "set" / ("a", os.fsdecode(b"\xe9t\xe9"))[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    data = ["data.kind=imagefolder", "data.path=${SET}", "data.num_classes=2", "data.max_corrupt_fraction=1"]
    overrides = [*TINY, *data, "training.max_steps=3", "training.output_dir=${RUN}"]
    run = f"{base}/run"
    train = Script("train.py", ("--config", DIGITS, *overrides))
    again = Script("train.py", ("--config", DIGITS, *overrides, "training.max_steps=4"))
    sample = Script("eval.py", ("sample", "--checkpoint", run, "--output", f"{base}/images", "--num-images", "1"))
    printed = []
    for number, command in enumerate((train, sample, again)):
        strict = OnStrictTerminal(command, encoding)
        with started(strict, tmp_path / str(number), SET=f"{base}/set", RUN=run) as process:
            assert process.wait() == [0], process.printed()
            printed.append(process.printed())
    assert "caf\\udce9/set/\\udce9t\\udce9/broken.png" in printed[0]
    assert "caf\\udce9/images" in printed[1]
    assert "resuming from" in printed[2] and "caf\\udce9/run/checkpoints/step_00000003 (step 3 of 4)" in printed[2]
    assert Path(run, "latest").exists() and Path(base, "images", "000000.png").exists()
    for record in (Path(run) / "environment.json", Path(base) / "images" / "sampling.json"):
        json.dumps(json.loads(record.read_bytes()), ensure_ascii=False).encode("utf-8", "strict")


def test_a_converted_file_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    saved = {"a": torch.zeros(3)}
    save_weights(tmp_path / "w.safetensors", saved, load_config(DIGITS))
    arguments = ["export", "--checkpoint", tmp_path / "w.safetensors", "--output", tmp_path / "out.pt"]
    monkeypatch.setattr("sys.argv", ["pmf.convert", *map(str, arguments)])
    full_disk(tmp_path / ".incomplete_out.pt")
    with pytest.raises(UserError, match=r"out.pt: cannot be written \(No space left on device\); make room$"):
        convert()


@pytest.mark.parametrize(("flag", "problem"), [(0, "may not be written to"), (os.ST_RDONLY, "is on a read-only file")])
def test_a_place_that_cannot_be_written_is_told_from_a_read_only_file_system(flag, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # what both answer, also to root
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flag))
    training = load_config(DIGITS, [f"training.output_dir={tmp_path}/run"]).training
    with pytest.raises(UserError, match=f"{tmp_path} {problem}.*; choose another"):
        require_storage(training, 1, 1)
