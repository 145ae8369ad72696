"""No code runs out of a checkpoint, a config or an image: what the sources may call, and what armed files do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "src").rglob("*.py")), *ROOT.glob("*.py")]

# Each of these can run code that its input names.
FORBIDDEN = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "marshal.load",
    "marshal.loads",
    "joblib.load",
    "shelve.open",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_called_that_runs_what_a_file_says(path):
    for name, call in calls(path):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        harmless = name == "yaml.load" and keywords.get("Loader") == "yaml.BaseLoader"  # text, lists and dicts only
        assert name not in FORBIDDEN or harmless, f"{path}:{call.lineno}"
        assert "subprocess" not in name or path.match("auto_batch/launch.py"), f"{path}:{call.lineno}"  # starts itself
        if name == "torch.load":
            assert keywords.get("weights_only") in ("True", "not allow_pickle"), f"{path}:{call.lineno}"
        assert keywords.get("allow_pickle") != "True", f"{path}:{call.lineno}"
        assert keywords.get("trust_remote_code") != "True", f"{path}:{call.lineno}"
