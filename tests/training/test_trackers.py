"""What holds for any tracker: it hears of a run what it should, a resume goes on in the same run, none ends a run."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker
from PIL import Image

import pmf.training.trackers
from pmf.config.sections import TRACKERS, as_plain
from pmf.config.yaml_file import config_from_plain, load_config, save_config
from pmf.errors import UserError
from pmf.training.metrics import MetricsLog
from tests.launch import ROOT, TINY, run_command

DIGITS = ROOT / "configs" / "digits.yaml"


class Recording(GeneralTracker):
    """A tracker that somebody adds; it raises or waits where it is told to."""

    name = "mine"
    requires_logging_directory = False
    tracker = None

    def __init__(self, run):
        super().__init__()
        self.run, self.fails_at, self.waits_at, self.seen = run, None, None, []

    def _at(self, place, *values):
        if place == self.fails_at:
            raise self.error("no\nmore")
        if place == self.waits_at:
            self.go_on.wait()
        self.seen.append((place, *values))

    def start(self):
        self._at("start", self.run.project, self.run.name)

    def store_init_configuration(self, values):
        self._at("config", values)

    def log(self, values, step=None, **kwargs):
        self._at("log", values, step)

    def log_images(self, values, step=None, **kwargs):
        self._at("log_images", {name: [image.shape for image in images] for name, images in values.items()}, step)

    def finish(self):
        self._at("finish")


@pytest.fixture
def mine(monkeypatch):
    """A row of the table: the trackers that it has made, and a function that says where they fail or wait."""
    made = []

    def that(**where):
        def make(run):
            made.append(Recording(run))
            vars(made[-1]).update(where)
            return made[-1]

        monkeypatch.setitem(TRACKERS, "mine", make)

    that()
    return made, that


def log_a_run(run: Path, warned: list[str], *trackers: str) -> list[dict]:
    """Three records and a grid; what ``metrics.jsonl`` then holds."""
    run.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((11, 21), np.uint8)).save(run / "grid.png")
    log = MetricsLog(run, load_config(DIGITS, [f"tracking.trackers={','.join(trackers)}"]), 0, warned.append)
    log.write({"step": 1, "loss_u": 0.5})
    log.show_samples(run / "grid.png", 1)
    log.write({"step": 2, "loss_u": 0.25})
    log.write({"step": 2, "fid": 3.5})
    log.close()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


METRICS = [{"step": 1, "loss_u": 0.5}, {"step": 2, "loss_u": 0.25}, {"step": 2, "fid": 3.5}]


def test_a_tracker_hears_of_config_metrics_grids_and_fid_in_their_order(mine, tmp_path):
    warned: list[str] = []
    assert log_a_run(tmp_path / "run", warned, "mine") == METRICS
    assert warned == []
    ((start, config, *seen),) = [tracker.seen for tracker in mine[0]]
    assert start == ("start", "pmf", "run")
    assert config[1]["training.seed"] == 42 and config[1]["sampling.interval"] == "[0.0, 1.0]"
    assert {type(value) for value in config[1].values()} <= {bool, int, float, str}  # what the interface admits
    assert seen == [
        ("log", {"loss_u": 0.5}, 1),
        ("log_images", {"samples": [(11, 21, 3)]}, 1),
        ("log", {"loss_u": 0.25}, 2),
        ("log", {"fid": 3.5}, 2),
        ("finish",),
    ]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, ImportError])
@pytest.mark.parametrize("place", ["start", "config", "log", "log_images", "finish"])
def test_whatever_it_raises_is_one_warning(place, error, mine, tmp_path):
    mine[1](fails_at=place, error=error)
    warned: list[str] = []
    assert log_a_run(tmp_path / "run", warned, "mine") == METRICS
    assert warned == [
        f"warning: tracking.trackers: mine: no; the run goes on without it, and its metrics are in {tmp_path}/run/"
        "metrics.jsonl"
    ]


@pytest.mark.parametrize("place", ["start", "log", "finish"])
def test_one_that_never_answers_is_left_behind_and_the_others_go_on(place, mine, tmp_path, monkeypatch):
    go_on = threading.Event()
    mine[1](waits_at=place, go_on=go_on)
    monkeypatch.setitem(TRACKERS, "other", Recording)
    monkeypatch.setattr(pmf.training.trackers, "TIMEOUT", 0.1)
    warned: list[str] = []
    assert log_a_run(tmp_path / "run", warned, "mine", "other") == METRICS
    (warning,) = warned
    assert "mine: no answer within 0." in warning
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "mine":
            thread.join()


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_package_that_is_missing_is_told_before_training(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    warned: list[str] = []
    MetricsLog(tmp_path, load_config(DIGITS, [f"tracking.trackers={name}"]), 0, warned.append)
    assert warned == [
        f"warning: tracking.trackers: {name}: {name} is not installed; install the extra `trackers` of pmf, or {name} "
        f"alone; the run goes on without it, and its metrics are in {tmp_path}/metrics.jsonl"
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_is_imported_in_the_main_thread_and_one_that_fails_there_is_one_warning(name, tmp_path, monkeypatch):
    text = "import threading\nraise RuntimeError(f'imported in {threading.current_thread().name}')\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    warned: list[str] = []
    assert log_a_run(tmp_path / "run", warned, name) == METRICS
    assert [line.partition(";")[0] for line in warned] == [
        f"warning: tracking.trackers: {name}: imported in {threading.main_thread().name}"
    ]


def test_tensorboard_that_cannot_write_is_one_warning(tmp_path):
    pytest.importorskip("tensorboard")
    PartialState(cpu=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    warned: list[str] = []
    assert log_a_run(tmp_path / "run", warned, "tensorboard") == METRICS
    assert [line.startswith("warning: tracking.trackers: tensorboard: ") for line in warned] == [True]


def test_configs_with_the_older_key_mean_the_same(tmp_path):
    config = load_config(DIGITS, ["tracking.wandb=true"])
    assert config.tracking.trackers == ["wandb"]
    assert config == load_config(DIGITS, ["tracking.trackers=wandb"])
    assert load_config(DIGITS, ["tracking.wandb=true", "tracking.trackers=trackio"]).tracking.trackers == [
        "trackio",
        "wandb",
    ]
    assert load_config(DIGITS, ["tracking.wandb=false"]) == load_config(DIGITS)
    for older, trackers in ((True, ["wandb"]), (False, [])):
        recorded = as_plain(config)
        recorded["tracking"] = {"wandb": older, "project": "pmf", "name": None}
        assert config_from_plain(recorded, "a checkpoint").tracking.trackers == trackers
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert "wandb: true" not in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("mlflow", "'wandb', 'tensorboard' or 'trackio'"),
        ("wandb,wandb", "tracking.trackers names one tracker twice: wandb, wandb"),
    ],
)
def test_a_wrong_name_is_refused(value, problem):
    with pytest.raises(UserError, match=problem):
        load_config(DIGITS, [f"tracking.trackers={value}"])


def test_steps_that_are_done_again_stand_once_in_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    PartialState(cpu=True)
    config = load_config(DIGITS, ["tracking.trackers=tensorboard"])
    for resumed, steps in ((0, (1, 2, 3)), (1, (2, 3, 4))):  # killed after step 3, and the checkpoint was of step 1
        log = MetricsLog(tmp_path, config, resumed, pytest.fail)
        for step in steps:
            log.write({"step": step, "loss_u": step + resumed / 2})
        log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss_u")] == [(1, 1), (2, 2.5), (3, 3.5), (4, 4.5)]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_tensorboard_and_trackio(tmp_path):
    """Two starts of real training: to step 4, and from the checkpoint of step 2 on, as after a kill."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("trackio")
    run, home = tmp_path / "run", {"TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    options = ["training.log_every=1", "training.checkpoint_every=2", "training.sample_every=2", "tracking.name=mine"]
    options += ["training.keep_checkpoints=5", f"training.output_dir={run}", "tracking.trackers=tensorboard,trackio"]
    for last in (4, 5):
        arguments = ("--config", str(DIGITS), *TINY, *options, f"training.max_steps={last}")
        result = run_command("train.py", *arguments, **home)
        assert result.returncode == 0, result.stderr
        assert "warning: tracking" not in result.stdout + result.stderr
        if last == 4:
            shutil.rmtree(run / "checkpoints" / "step_00000004")
            first_id = json.loads((run / "trackio_run.json").read_text())["id"]
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    logged = {
        line["step"]: line["loss_u"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    }
    assert [event.step for event in events.Scalars("loss_u")] == [1, 2, 3, 4, 5]  # none twice
    # Event files hold float32.
    assert {event.step: event.value for event in events.Scalars("loss_u")} == pytest.approx(logged, rel=1e-6)
    assert [event.step for event in events.Images("samples")] == [2, 4, 5]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    training.global_batch_size: 16\n" in text
    with sqlite3.connect(tmp_path / "trackio" / "pmf.db") as database:
        rows = list(database.execute("select run_name, run_id, step, metrics from metrics order by id"))
    assert {name for name, *_ in rows} == {f"mine-{first_id}"}
    assert len({run_id for _, run_id, *_ in rows}) == 1
    records = [(step, json.loads(metrics)) for *_, step, metrics in rows]
    assert [step for step, record in records if "loss_u" in record] == [1, 2, 3, 4, 3, 4, 5]
    assert [step for step, record in records if "samples" in record] == [2, 4, 4, 4, 5]
