"""What a run records of the library's commit: its own checkout's or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pmf.training.environment import library_commit


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package in ``src/pmf``, committed."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    package = tmp_path / "checkout" / "src" / "pmf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package, "init", "-q", "../..")
    git(package, "add", ".")
    git(package, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return package


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_it_is_the_commit_and_whether_files_differ(checkout, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    assert library_commit(checkout) == head
    git(checkout, "tag", "v1")
    assert library_commit(checkout) == head
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    assert library_commit(checkout) == head
    (checkout / "__init__.py").write_text("changed = True")
    assert library_commit(checkout) == f"{head}-dirty"


def test_an_installed_library_has_none(checkout):
    installed = checkout.parents[1] / ".venv" / "lib" / "pmf"  # inside somebody's repository
    installed.mkdir(parents=True)
    assert library_commit(installed) is None


def test_without_git_there_is_none(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert library_commit(checkout) is None


def test_a_broken_repository_has_none(checkout):
    (checkout.parents[1] / ".git" / "HEAD").write_text("")
    assert library_commit(checkout) is None
