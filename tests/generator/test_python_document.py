"""Every snippet of docs/python.md runs, in the order of the page."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from tests.launch import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
DIFFUSERS = "<!-- needs diffusers -->\n"


def snippets() -> list[str]:
    found = re.findall(rf"({re.escape(DIFFUSERS)})?```python\n(.*?)```", PAGE, re.DOTALL)
    has_diffusers = importlib.util.find_spec("diffusers") is not None
    return [code for needs_diffusers, code in found if has_diffusers or not needs_diffusers]


def test_every_snippet_runs(digits_run, tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec("diffusers"):
        from diffusers.utils import dynamic_modules_utils

        monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.syspath_prepend(tmp_path / "modules")
    shutil.copytree(digits_run, tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in snippets():
        exec(compile(code, "docs/python.md", "exec"), names)
    assert len(snippets()) >= 7
    assert [path.name for path in Path().glob("*.png")] == ["three.png"]
    printed = capsys.readouterr().out
    assert "('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')\n(1, 8, 8)" in printed
    assert "label 'seven': no class has this name" in printed


def test_the_page_names_every_sampling_option():
    from pmf.config.sampling_options import Use, options_for
    from pmf.config.sections import sampling_section

    assert [name for name in options_for(sampling_section(), Use.IMAGES, Use.BATCHES) if f"`{name}`" not in PAGE] == []


@pytest.mark.slow
def test_a_program_that_uses_it_is_type_checked(tmp_path):
    """As by its user: the annotations of the package are seen, and a wrong call is found."""
    from tests.launch import launch

    program = tmp_path / "program.py"
    program.write_text(
        "import pmf\n"
        'model = pmf.load("runs/digits")\n'
        'images = model.generate(labels=[3, "golden retriever"], omega=7, steps=1)\n'
        "reveal_type(images)\n"
        'reveal_type(model.generate(3, output="tensor"))\n'
        "reveal_type(pmf.Generator.from_pretrained)\n"
        'model.generate(seed="0")\n'
    )
    done = launch("-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(program))
    assert re.search(r':4: note: Revealed type is "(builtins\.)?list\[PIL\.Image\.Image\]"', done.stdout), done.stdout
    assert re.search(r':5: note: Revealed type is "torch\.\S*Tensor"', done.stdout), done.stdout
    assert re.search(r":7: error: No overload variant", done.stdout), done.stdout
