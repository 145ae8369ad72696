"""A run's page says what was run and how to go on, is never a user's own, and is never worth the run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

import pmf.report.writing
from pmf.config.yaml_file import load_config, save_config
from pmf.errors import Preempted
from pmf.report.curves import draw_curves, read_metrics
from pmf.report.facts import RunFacts, read_facts
from pmf.report.page import MARKER, commands
from pmf.report.writing import RunReport, write_report
from pmf.training.trainer import Trainer
from tests.launch import ROOT, TINY, run_command
from tests.runs import metrics_of, tiny_config

OLD = ROOT / "tests" / "fixtures" / "old_run" / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of an earlier version after 2 of 4 steps, with some records of later ones."""
    shutil.copytree(OLD, tmp_path / "run")
    lines = [{"step": 2, "images": 16, "loss_u": 0.5}, {"step": 3, "images": 24, "fid": 7.5}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run" / "evaluation").mkdir()
    for step, fid in ((2, 6.25), (3, 7.5)):
        record = {"step": step, "images_seen": 8 * step, "fid": fid, "inception_score": None, "num_images": 40}
        (tmp_path / "run" / "evaluation" / f"step_{step:08d}.json").write_text(json.dumps(record))
    return tmp_path / "run"


def page_of(run: Path) -> str:
    return (run / "README.md").read_text()


def test_it_says_how_far_the_run_is_and_what_came_of_it(run):
    write_report(run)
    page = page_of(run)
    assert page.startswith(f"{MARKER}\n# run\n")
    assert "At step 3 of 4 (75%) when this was written; the newest checkpoint is of step 2." in page
    assert "| last | 3 | 24 | 7.5 | - |" in page
    assert "| best | 2 | 16 | 6.25 | - |" in page
    assert "| Images seen | 24 |" in page  # of how many is not recorded by that version
    for name in re.findall(r"^- `(.*?)`", page, re.MULTILINE):
        assert (run / name).exists()
    for name in re.findall(r"\]\((.*?)\)", page):
        assert (run / name).exists()
    assert "preempted" not in page
    (run / "preempted").write_text("{}")
    write_report(run)
    assert "**Stopped on request** at step 3 of 4 (75%)" in page_of(run)


def test_a_page_of_the_users_own_stays(run):
    (run / "README.md").write_text("# My notes\n")
    write_report(run)
    assert page_of(run) == "# My notes\n"
    (run / "README.md").unlink()
    write_report(run)
    ours = page_of(run)
    kept = ours.removeprefix(MARKER + "\n") + "my own sentence\n"  # as the marker itself says
    (run / "README.md").write_text(kept)
    write_report(run)
    assert page_of(run) == kept


def test_what_cannot_be_written_is_told_once(run):
    (run / "curves.png").mkdir()
    told: list[str] = []
    report = RunReport(run, told.append)
    report.end()
    report.end()
    (line,) = told
    assert line.startswith(f"warning: {run}: curves.png and README.md cannot be written: ") and "\n" not in line
    (run / "curves.png").rmdir()
    report.end()
    assert page_of(run).startswith(MARKER)
    assert not list(run.glob(".incomplete_*"))


def test_pictures_follow_every_evaluation_and_else_take_little_of_the_time(run, monkeypatch):
    def written() -> tuple[bool, bool]:
        names = ("README.md", "curves.png")
        there = tuple((run / name).exists() for name in names)
        for name in names:
            (run / name).unlink(missing_ok=True)
        return there

    written()
    report = RunReport(run, pytest.fail)
    report.write(evaluated=False)
    assert written() == (True, False)  # a run that has just begun
    for _ in range(2):
        report.write(evaluated=True)
        assert written() == (True, True)
    report.write(evaluated=False)
    assert written() == (True, False)  # too soon
    monkeypatch.setattr(pmf.report.writing, "SHARE", 1e9)
    report.end()
    assert written() == (True, True)
    report.write(evaluated=False)
    assert written() == (True, True)


def test_training_says_what_follows_an_evaluation(tmp_path):
    class Recording(RunReport):
        def write(self, *, evaluated: bool) -> None:
            told.append(evaluated)

    told: list[bool] = []
    evaluation = ("evaluation.every_images=96", "evaluation.num_images=40", "evaluation.reference=digits")
    trainer = Trainer(tiny_config(tmp_path, "training.checkpoint_every=4", "training.max_steps=9", *evaluation))
    trainer.report = Recording(tmp_path, pytest.fail)
    trainer.train()
    assert told == [False, True, False]  # steps 4, 6 and 8


def test_a_run_that_is_asked_to_stop_draws_nothing(tmp_path):
    """Who asked may kill it in seconds."""
    trainer = Trainer(tiny_config(tmp_path))
    with pytest.raises(Preempted):
        trainer._leave()
    assert "**Stopped on request** at step 0 of 12" in page_of(tmp_path)
    assert not (tmp_path / "curves.png").exists()


def test_a_copy_is_continued_where_it_lies(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "a copy"
    Trainer(tiny_config(run, "training.max_steps=1")).train()
    assert "training.output_dir=" not in page_of(run)
    shutil.copytree(run, copy)
    write_report(copy)
    resume = shlex.split(re.findall(r"```bash\n(.*?)\n```", page_of(copy))[0])
    config, override = resume[-2:]
    assert load_config(Path(config), [override]).training.output_dir == str(copy)


def test_the_total_loss_is_called_flat_where_the_config_makes_it_so(run):
    (run / "metrics.jsonl").write_text(json.dumps({"step": 2, "images": 16, "loss_u": 0.5, "loss": 2.0}) + "\n")
    write_report(run)
    explained = (run / "curves.png").read_bytes()
    save_config(load_config(run / "config.yaml", ["objective.adaptive_power=0.5"]), run / "config.yaml")
    write_report(run)
    plain = (run / "curves.png").read_bytes()
    for flat, drawn in ((True, explained), (False, plain)):
        draw_curves(read_metrics(run / "metrics.jsonl"), run / "again.png", flat_total=flat)
        assert (run / "again.png").read_bytes() == drawn
    assert plain != explained


def facts(run: Path, *overrides: str, **environment: object) -> RunFacts:
    return RunFacts(
        config=tiny_config(run, *overrides),
        step=4,
        images_seen=64,
        max_steps=12,
        averages=("10",),
        evaluations=[],
        environment=environment,
    )


@pytest.mark.parametrize(
    ("environment", "resume", "sample"),
    [
        ({"command": ["train.py"]}, "python train.py", "python eval.py sample"),
        ({"command": ["a b/train.py"], "uv": True}, "uv run 'a b/train.py'", "uv run 'a b/eval.py' sample"),
        ({"command": ["/usr/bin/pmf", "train"]}, "pmf train", "pmf sample"),
        (
            {"command": ["train.py"], "world_size": 8, "local_world_size": 8},
            "torchrun --nproc_per_node 8 train.py",
            "python eval.py sample",
        ),
        (
            {"command": ["/usr/bin/pmf", "train"], "world_size": 2, "local_world_size": 2},
            "torchrun --nproc_per_node 2 -m pmf train",
            "pmf sample",
        ),
        # On two machines: the launcher's arguments are not known.
        (
            {"command": ["train.py"], "world_size": 16, "local_world_size": 8},
            "python train.py",
            "python eval.py sample",
        ),
    ],
)
def test_commands_are_those_of_the_way_in_which_the_run_was_started(environment, resume, sample):
    found = commands(Path("runs/it's here"), facts(Path("runs/it's here"), **environment))
    quoted = shlex.quote("runs/it's here")
    assert found["resume"] == f"{resume} --config {shlex.quote('''runs/it's here/config.yaml''')}"
    assert found["sample"].startswith(f"{sample} --checkpoint {quoted} --output ")
    assert shlex.split(found["sample"])[-5:] == [
        "runs/it's here",
        "--output",
        "runs/it's here/samples/more",
        "--num-images",
        "100",
    ]


def test_the_evaluation_is_that_of_the_run(tmp_path):
    environment = {"command": ["train.py"]}
    of_config = ("evaluation.every_images=96", "evaluation.num_images=40", "evaluation.reference=stats.npz")
    words = shlex.split(commands(Path("r"), facts(tmp_path, *of_config, **environment))["evaluate"])
    assert words[-6:] == ["--reference", "stats.npz", "--num-images", "40", "--seed", "42"]
    words = shlex.split(commands(Path("r"), facts(tmp_path, "evaluation.reference=null", **environment))["evaluate"])
    assert words[-2:] == ["--reference", "digits"]
    others = ("data.kind=synthetic", "evaluation.reference=null")
    words = shlex.split(commands(Path("r"), facts(tmp_path, *others, **environment))["evaluate"])
    assert words[-2:] == ["--reference", "r/config.yaml"]  # its own training images


def test_a_run_whose_report_fails_is_the_same_run(tmp_path, capsys):
    (tmp_path / "run" / "README.md").mkdir(parents=True)
    Trainer(tiny_config(tmp_path / "run", "training.max_steps=2")).train()
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [2]
    assert read_facts(tmp_path / "run").step == 2
    assert capsys.readouterr().out.count("curves.png and README.md cannot be written: ") == 1


@pytest.mark.slow
def test_its_commands_work(tmp_path, monkeypatch):
    """Of two processes, in a folder whose name a shell would take apart."""
    monkeypatch.delenv("UV", raising=False)  # that runs the tests
    name = "a run's & (odd) folder"
    options = [*TINY, f"training.output_dir={name}", "training.sample_every=6", "evaluation.every_images=96"]
    options += ["evaluation.num_images=40", "evaluation.reference=digits", "training.max_steps=6"]
    script = str(ROOT / "train.py")
    started = run_command(script, "--config", str(ROOT / "configs" / "digits.yaml"), *options, ranks=2, cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    run = tmp_path / name
    page = page_of(run)
    assert "**Finished**: step 6 of 6 (100%)." in page
    assert "| Hardware | 2 process(es) on cpu |" in page
    assert "| Images seen | 96, 0.1 passes over 1,797 |" in page
    assert f"From `{tmp_path}`:" in page
    with Image.open(run / "samples" / "strip.png") as strip:
        assert strip.width == 33 + 1  # one grid
    resume, sample, evaluate = (shlex.split(command) for command in re.findall(r"```bash\n(.*?)\n```", page))
    assert resume[:4] == ["torchrun", "--nproc_per_node", "2", script]
    continued = run_command(*resume[3:], "training.max_steps=7", ranks=2, cwd=tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert "(step 6 of 7)" in continued.stdout
    assert "**Finished**: step 7 of 7 (100%)." in page_of(run)
    for command in (sample, evaluate):
        assert command[0] == "python"
        done = run_command(*command[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(list((run / "samples" / "more").glob("*.png"))) == 100
    assert "FID of digits" in done.stdout
