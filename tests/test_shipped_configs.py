"""What ``--config NAME`` finds: a local file first, then ``./configs``, then the library's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmf.cli.batch_size import main as auto_batch
from pmf.cli.configs import main as print_configs
from pmf.cli.entry import main as pmf
from pmf.config import shipped
from pmf.config.shipped import find_config, shipped_config, shipped_names
from pmf.config.yaml_file import load_config
from pmf.errors import UserError
from tests.launch import ROOT

OURS = ROOT / "configs" / "digits.yaml"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_names_are_the_files_of_the_folder():
    assert shipped_names() == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", ["digits", "digits.yaml", "configs/digits", "./configs/digits.yaml"])
def test_the_librarys_own_is_found_from_anywhere(name):
    assert find_config(name) == OURS
    assert load_config(name) == load_config(OURS)


def test_nearer_files_win():
    """A folder of that name is none of them."""
    Path("digits").mkdir()
    Path("configs").mkdir()
    places = [OURS, Path("configs/digits.yaml"), Path("digits.yaml")]
    for place in places:
        if place != OURS:
            place.write_text("data:\n  kind: synthetic\ntraining:\n  max_steps: 3\n")
        assert find_config("digits") == find_config("digits.yaml") == place
    Path("digits").rmdir()
    Path("digits").write_text("training: {}\n")
    assert find_config("digits") == Path("digits")


@pytest.mark.parametrize("name", ["/nowhere/configs/digits.yaml", "../configs/digits.yaml", "runs/digits"])
def test_other_paths_are_not_taken_for_names(name):
    assert shipped_config(name) is None
    assert find_config(name) == Path(name)


def test_a_wheel_has_them_within_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "pmf"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "mine.yaml").write_text("")
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    assert shipped_names() == ["mine"]
    assert find_config("mine") == package / "configs" / "mine.yaml"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("digts", "did you mean digits or digits_imf?"),
        ("configs/pmf_b16.yaml", "did you mean pmf_b_16"),
        ("mine.yaml", "known configs: digits, digits_imf,"),
    ],
)
def test_a_name_that_is_not_there_is_told_with_the_nearest(name, advice):
    with pytest.raises(UserError) as told:
        load_config(name)
    assert str(told.value).startswith(f"{name}: cannot read this config (No such file or directory); {advice}")
    assert "\n" not in str(told.value)


def test_a_recipe_is_printed_as_it_is_and_all_are_listed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pmf configs", "digits"])
    print_configs()
    assert capsys.readouterr().out == OURS.read_text()
    monkeypatch.setattr("sys.argv", ["pmf configs"])
    print_configs()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == shipped_names()
    monkeypatch.setattr("sys.argv", ["pmf configs", "digts"])
    with pytest.raises(UserError, match="digts: there is no recipe of that name; did you mean digits"):
        print_configs()


def test_the_search_for_a_batch_size_writes_into_no_recipe_of_the_library(monkeypatch):
    before = OURS.read_bytes()
    monkeypatch.setattr("sys.argv", ["pmf auto-batch", "--config", "digits"])
    with pytest.raises(UserError) as told:
        auto_batch()
    assert str(told.value) == (
        "--config digits: is a recipe of the library, which is not written into; copy it (pmf configs digits > "
        "digits.yaml) and give --config digits.yaml, or only look with --dry-run"
    )
    assert OURS.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "pmf needs a command: train, sample"),
        (["trian"], "pmf trian: there is no such command; did you mean train?"),
        (["xyz"], "pmf xyz: there is no such command; choose one of: train, sample"),
        (["--verson"], "there is no --verson; did you mean --version?"),
    ],
    ids=str,
)
def test_what_is_no_command_is_told_in_one_line(given, line, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pmf", *given])
    with pytest.raises(UserError) as told:
        pmf()
    assert str(told.value).startswith(line)
    assert "\n" not in str(told.value)
