"""A tracker that fails, hangs or has no login never ends a run: W&B goes offline, and metrics.jsonl goes on.

What holds for all trackers, and the two others, is in test_trackers.py.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from accelerate.state import PartialState

import pmf.training.trackers
from pmf.config.yaml_file import load_config
from pmf.training.metrics import MetricsLog
from pmf.training.tracker_kinds import WANDB_ID, wandb_problem
from tests.launch import ROOT, launch

wandb = pytest.importorskip("wandb", reason="needs wandb")
wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="needs wandb")


@pytest.fixture
def wandb_config(tmp_path, monkeypatch):
    """A config that asks for Weights & Biases, on a machine without login."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    PartialState(cpu=True)  # accelerate's classes log, which they refuse without it
    wandb.teardown()
    yield load_config(ROOT / "configs" / "digits.yaml", ["tracking.trackers=wandb"])
    wandb.teardown()


@pytest.fixture
def silent_server():
    """Accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def log_two_steps(run_folder: Path, config) -> list[str]:
    """Warnings on the way."""
    run_folder.mkdir()
    warned: list[str] = []
    log = MetricsLog(run_folder, config, resumed_step=0, warn=warned.append)
    for step in (1, 2):
        log.write({"step": step, "loss_u": 0.5})
    log.close()
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    return warned


def test_without_login_it_goes_offline(wandb_config, tmp_path):
    run = tmp_path / "run"
    assert log_two_steps(run, wandb_config) == [
        "warning: tracking.trackers: wandb: there is no login; run `wandb login` or set WANDB_API_KEY; logging "
        f"offline, upload later with `wandb sync {run}/wandb/offline-run-*`"
    ]
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("network", ["refused", "hanging"])
def test_without_network_it_goes_offline(network, wandb_config, tmp_path, monkeypatch, silent_server):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(pmf.training.trackers, "TIMEOUT", 3.0)
    # Port 9 is reserved for a service that nobody runs.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if network == "refused" else silent_server)
    run = tmp_path / "run"
    (warning,) = log_two_steps(run, wandb_config)
    assert warning.startswith("warning: tracking.trackers: wandb: ")  # the reason is in wandb's words
    assert warning.endswith(f"; logging offline, upload later with `wandb sync {run}/wandb/offline-run-*`")
    assert "\n" not in warning
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1


MALFORMED = {"short": "x", "spaces": "not a key " * 5, "line break": "a" * 40 + "\n"}


@pytest.mark.parametrize("key", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_key_goes_offline(key, wandb_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert wandb_problem()  # what the doctor asks
    run = tmp_path / "run"
    (warning,) = log_two_steps(run, wandb_config)
    assert warning.endswith(f"; logging offline, upload later with `wandb sync {run}/wandb/offline-run-*`")
    assert "\n" not in warning
    assert [row["step"] for row in logged(run)] == [1, 2]
    assert os.environ["WANDB_API_KEY"] == key


def test_settings_that_wandb_refuses_leave_the_metrics(wandb_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    (warning,) = log_two_steps(tmp_path / "run", wandb_config)
    assert warning.startswith("warning: tracking.trackers: wandb: 1 validation error")
    assert warning.endswith(f"; the run goes on without it, and its metrics are in {tmp_path}/run/metrics.jsonl")


@dataclass
class Run:
    """Stands for the tracker's run; raises where it is told to."""

    fails_at: str | None = None
    error: type[BaseException] = RuntimeError
    rows: list[dict] = field(default_factory=list)
    options: list[dict] = field(default_factory=list)

    def init(self, **options):
        self._at("init")
        self.options.append(options)
        return self

    def define_metric(self, *names, **options):
        self._at("define_metric")

    def log(self, row, step=None):
        assert step is None  # wandb's own counter is left alone
        self._at("log")
        self.rows.append(row)

    def finish(self):
        self._at("finish")

    def _at(self, place):
        if place == self.fails_at:
            raise self.error("no\nmore")


@pytest.mark.parametrize("error", [RuntimeError, ConnectionResetError, SystemExit, UnicodeEncodeError])
@pytest.mark.parametrize("place", ["init", "define_metric", "log", "finish"])
def test_whatever_the_tracker_raises_is_one_warning(place, error, wandb_config, tmp_path, monkeypatch):
    raised = partial(UnicodeEncodeError, "utf-8", "x", 0, 1) if error is UnicodeEncodeError else error
    monkeypatch.setattr(wandb, "init", Run(place, raised).init)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (warning,) = log_two_steps(tmp_path / "run", wandb_config)
    assert warning.startswith("warning: tracking.trackers: wandb: ")
    assert "\n" not in warning


# Its process is killed, or does not answer any more. The timeout is of 2 x TIMEOUT = 2 seconds.
SERVICE = """
import atexit, os, signal, sys
from pathlib import Path

services = []
atexit.register(lambda: [os.kill(pid, signal.SIGKILL) for pid in services])  # after what wandb registers

import time

import pmf.training.trackers
from accelerate.state import PartialState
from pmf.config.yaml_file import load_config
from pmf.training.metrics import MetricsLog

def children(pid):
    return [int(child) for child in Path(f"/proc/{os.getpid()}/task/{pid}/children").read_text().split()]

PartialState(cpu=True)
log = MetricsLog(Path(sys.argv[1]), load_config(sys.argv[2], ["tracking.trackers=wandb"]), 0, print)
log.write({"step": 1})
while not log._trackers._workers[0].started:
    time.sleep(0.05)
threads = [int(path.name) for path in Path(f"/proc/{os.getpid()}/task").iterdir()]
started = [pid for thread in threads for pid in children(thread)]
services += [pid for pid in started if "wandb" in Path(f"/proc/{pid}/cmdline").read_text()]
assert services
pmf.training.trackers.TIMEOUT = 1.0
for pid in services:
    os.kill(pid, getattr(signal, sys.argv[3]))
for step in (2, 3):
    log.write({"step": step})
log.close()
print("the end")
"""


@pytest.mark.parametrize("signal", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.slow)])
def test_a_service_that_dies_or_hangs_is_left_behind(signal, tmp_path):
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    digits = str(ROOT / "configs" / "digits.yaml")
    result = launch("-c", SERVICE, str(tmp_path), digits, signal, **settings)
    assert result.returncode == 0, result.stderr
    *warnings, end = result.stdout.splitlines()
    assert end == "the end"
    assert [line.startswith("warning: tracking.trackers: wandb: ") for line in warnings] == [True]
    assert warnings[0].endswith(f"; the run goes on without it, and its metrics are in {tmp_path}/metrics.jsonl")
    assert "Traceback" not in result.stderr
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def logged(run_folder: Path) -> list[dict]:
    """What the files for a later upload hold: rows of metrics with the id of their run, in order.

    They are logs as LevelDB's: blocks of 32 KiB with records of checksum, length and kind (1 whole, 4 last part).
    """
    wandb.teardown()  # its service writes the last of it in its own time
    rows = []
    for path in sorted(run_folder.glob("wandb/offline-run-*/*.wandb")):
        content, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", content[at : at + 7])
            whole += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                record, whole = wandb_internal_pb2.Record.FromString(whole), b""
                if record.HasField("run"):
                    run_id = record.run.run_id
                if record.HasField("history"):
                    items = {
                        item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
                    }
                    rows.append({"id": run_id, **items})
    return rows


def test_a_resume_goes_on_in_the_same_run_also_from_an_earlier_step(wandb_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    steps = ([1, 2, 3, 4], [3, 4, 5])  # killed after step 4, and the newest checkpoint was of step 2
    for number, own in enumerate(steps):
        if number:
            time.sleep(1.1)  # the folders are named by the second
        log = MetricsLog(tmp_path, wandb_config, resumed_step=own[0] - 1, warn=pytest.fail)
        for step in own:
            log.write({"step": step, "loss_u": step / 10})
        log.close()
    rows = logged(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 3, 4, 5]  # none is dropped for going back
    assert [row["loss_u"] for row in rows] == [row["step"] / 10 for row in rows]
    assert {row["id"] for row in rows} == {json.loads((tmp_path / WANDB_ID).read_text())["id"]}
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5]


@pytest.fixture
def id_of(wandb_config, monkeypatch):
    """The id with which a run in a folder asks for its tracker, and what is said on the way."""
    monkeypatch.setenv("WANDB_MODE", "offline")

    def ask(folder: Path) -> tuple[str, list[str]]:
        run, warned = Run(), []
        monkeypatch.setattr(wandb, "init", run.init)
        folder.mkdir(exist_ok=True)
        MetricsLog(folder, wandb_config, 0, warned.append).close()
        (options,) = run.options
        assert options["resume"] == "allow"
        return options["id"], warned

    return ask


def test_the_id_is_made_once(id_of, tmp_path):
    first, warned = id_of(tmp_path / "run")
    assert not warned
    file = tmp_path / "run" / WANDB_ID
    written = file.stat().st_mtime_ns, file.stat().st_ino
    assert id_of(tmp_path / "run") == (first, [])
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written
    assert id_of(tmp_path / "other")[0] != first


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"id": 3}', '{"id": ""}', '{"id": "a/b"}', "\udcff"])
def test_what_is_no_id_becomes_one(content, id_of, tmp_path):
    first, _ = id_of(tmp_path)
    (tmp_path / WANDB_ID).write_bytes(content.encode(errors="surrogateescape"))
    second, warned = id_of(tmp_path)
    assert second != first
    assert warned == [
        f"warning: tracking.trackers: wandb: {tmp_path}/{WANDB_ID} holds no run id; this becomes a new run there"
    ]
    assert id_of(tmp_path) == (second, [])


def test_a_copy_is_another_run_and_a_moved_folder_is_not(id_of, tmp_path):
    first, _ = id_of(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    assert id_of(tmp_path / "link") == (first, [])
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copied, warned = id_of(tmp_path / "copy")
    assert copied != first
    assert warned[0].endswith(f"{tmp_path}/copy is a copy of {tmp_path}/link; this becomes a new run there")
    assert id_of(tmp_path / "copy") == (copied, [])
    assert id_of(tmp_path / "run") == (first, [])
    (tmp_path / "run").rename(tmp_path / "moved")
    assert id_of(tmp_path / "moved") == (first, [])


def test_the_users_id_is_taken_and_kept(id_of, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert id_of(tmp_path) == ("mine", [])
    monkeypatch.delenv("WANDB_RUN_ID")
    assert id_of(tmp_path) == ("mine", [])
