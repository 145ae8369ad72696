"""A tracker that fails, hangs or has no login never ends a run: it goes offline, and metrics.jsonl goes on."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

import pmf.tracking
from pmf.configfile import load_config
from pmf.tracking import MetricsLog
from tests.launch import ROOT

wandb = pytest.importorskip("wandb", reason="needs wandb")


@pytest.fixture
def wandb_config(tmp_path, monkeypatch):
    """A config that asks for Weights & Biases, on a machine without login."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(pmf.tracking, "TIMEOUT", 3.0)
    wandb.teardown()
    yield load_config(ROOT / "configs" / "digits.yaml", ["tracking.wandb=true"])
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
        "warning: tracking.wandb: there is no login; run `wandb login` or set WANDB_API_KEY; logging offline, upload "
        f"later with `wandb sync {run}/wandb/offline-run-*`"
    ]
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("network", ["refused", "hanging"])
def test_without_network_it_goes_offline(network, wandb_config, tmp_path, monkeypatch, silent_server):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    # Port 9 is reserved for a service that nobody runs.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if network == "refused" else silent_server)
    run = tmp_path / "run"
    (warning,) = log_two_steps(run, wandb_config)
    assert warning.startswith("warning: tracking.wandb: ")  # the reason is in wandb's words
    assert warning.endswith(f"; logging offline, upload later with `wandb sync {run}/wandb/offline-run-*`")
    assert "\n" not in warning
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1


def test_a_tracker_that_breaks_is_left_behind(wandb_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    warned: list[str] = []
    log = MetricsLog(tmp_path, wandb_config, resumed_step=0, warn=warned.append)
    log.write({"step": 1})
    log.wandb.finish()  # its process has ended; logging raises from now on
    for step in (2, 3):
        log.write({"step": step})
    log.close()
    assert len(warned) == 1
    assert warned[0].startswith("warning: tracking.wandb: stopped (")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
