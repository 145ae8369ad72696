"""What ``uv build`` makes: what is in it, and that it works in a fresh environment outside the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv: pip install uv"),
]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"pmf-{PROJECT['version']}"
WHEEL = f"{NAME}-py3-none-any.whl"
SOURCE = ROOT / "src" / "pmf"
LIMIT = 900
"""Seconds that a command may take; alone on the machine none takes more than half a minute."""
# What a command must not see of this environment, or of the repository.
FOREIGN = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "UV_PROJECT_ENVIRONMENT")


def run(*command: object, cwd: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    variables |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **{name: str(of) for name, of in environment.items()}}
    return subprocess.run([*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True, timeout=LIMIT)


def uv(*command: object, cwd: Path = ROOT, **environment: object) -> None:
    """Call uv, without network; the test is skipped where uv's cache lacks what is needed."""
    done = run("uv", *command, cwd=cwd, UV_OFFLINE="1", **environment)
    if "network was disabled" in done.stderr or "network connectivity is disabled" in done.stderr:
        pytest.skip(f"uv's cache lacks what uv {command[0]} needs, which uv sync would put there: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with the sdist, and the wheel that was made of it."""
    return once("distributions", lambda folder: uv("build", "--out-dir", folder))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_library_its_recipes_and_nothing_else(built):
    found = contents(built / WHEEL)
    ours = {f"pmf/{path.relative_to(SOURCE)}": path for path in SOURCE.rglob("*") if path.is_file()}
    ours |= {
        f"pmf/configs/{path.relative_to(ROOT / 'configs')}": path
        for path in (ROOT / "configs").rglob("*")
        if path.is_file()
    }
    ours = {name: path for name, path in ours.items() if "__pycache__" not in name}
    about = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert found.keys() == ours.keys() | about | {f"{NAME}.dist-info/licenses/LICENSE"}
    assert [name for name, path in ours.items() if found[name] != path.read_bytes()] == []
    assert b"pmf = pmf.cli.entry:pmf" in found[f"{NAME}.dist-info/entry_points.txt"]
    assert "pmf/configs/digits.yaml" in found


def test_metadata_name_every_extra_and_the_version(built):
    told = contents(built / WHEEL)[f"{NAME}.dist-info/METADATA"].decode()
    assert f"\nVersion: {PROJECT['version']}\n" in told
    assert set(re.findall(r"^Provides-Extra: (\S+)$", told, re.MULTILINE)) == set(PROJECT["optional-dependencies"])
    assert {"jax", "latent", "demo", "export", "hub", "trackers"} <= set(PROJECT["optional-dependencies"])


def test_nothing_in_either_names_a_folder_of_this_machine(built):
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        files = {member.name: file.read() for member in archive if (file := archive.extractfile(member)) is not None}
    assert {name.split("/")[1] for name in files} >= {"src", "configs", "docs", "README.md", "LICENSE", "train.py"}
    for name, content in {**files, **contents(built / WHEEL)}.items():
        assert str(ROOT).encode() not in content, name
    assert [name for name in files if name.split("/")[1] in ("tests", "benchmarks", ".venv", "runs")] == []


def test_the_sdist_makes_the_same_wheel_as_the_repository(built, tmp_path):
    """The wheel beside it was made of it."""
    uv("build", "--wheel", "--out-dir", tmp_path)
    assert contents(tmp_path / WHEEL) == contents(built / WHEEL)


def test_the_wheel_works_in_a_fresh_environment(built, tmp_path):
    """As a stranger would use it: train, sample, three lines of Python, export, the page to play with."""
    environment = tmp_path / "environment"
    of_extras = ("--extra", "export", "--extra", "demo")
    locked = ("--frozen", "--no-dev", "--no-install-project", "--python", sys.executable)
    uv("sync", *locked, *of_extras, UV_PROJECT_ENVIRONMENT=environment)
    uv("pip", "install", "--python", environment, "--no-deps", built / WHEEL, cwd=tmp_path)
    uv("pip", "check", "--python", environment, cwd=tmp_path)
    work = tmp_path / "work"
    work.mkdir()

    def succeeds(*command: object) -> str:
        done = run(environment / "bin" / str(command[0]), *command[1:], cwd=work)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    assert succeeds("pmf", "--version") == f"pmf {PROJECT['version']}\n"
    where = succeeds("python", "-c", "import pmf; print(pmf.__file__)")
    assert where.startswith(str(environment))
    succeeds("pmf", "train", "--config", "digits", "training.max_steps=20")
    assert (work / "runs" / "digits" / "checkpoints" / "step_00000020" / "manifest.json").exists()
    succeeds("pmf", "sample", "--checkpoint", "runs/digits", "--labels", "3", "--num-images", "2", "--output", "three")
    assert len(list((work / "three").glob("*.png"))) == 2
    succeeds("python", "-c", python_of_the_readme())
    succeeds("pmf", "export", "runs/digits", "--onnx", "model.onnx")
    assert (work / "model.onnx").stat().st_size > 0
    runtime = ROOT / "node_modules" / "onnxruntime-web"
    if runtime.is_dir():
        succeeds("pmf", "demo", "runs/digits", "--export", "page", "--onnxruntime-web", runtime)
        assert (work / "page" / "index.html").exists()
    else:  # npm has to fetch it, which is refused here like all of the network
        page = run(environment / "bin" / "pmf", "demo", "runs/digits", "--export", "page", cwd=work)
        assert page.returncode == 2
        assert "onnxruntime-web" in page.stderr


def python_of_the_readme() -> str:
    """The lines of the README's section on Python."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"^## In Python$.*?^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert found, "there is such a section"
    return found[1]
