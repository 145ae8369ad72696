"""No code runs out of a checkpoint, a config or an image: what the sources may call. Armed files: bad_input."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

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

# Files that start programs by name, with arguments that no file of a user's decides.
STARTERS = {
    "auto_batch/launch.py": "itself, again",
    "demo/static_page.py": "npm, for a package that is named there",
    "training/environment.py": "git, to ask for the library's own commit",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def problem(path: Path, name: str, call: ast.Call) -> str | None:
    """What a call could run that it should not."""
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in FORBIDDEN and not (name == "yaml.load" and keywords.get("Loader") == "yaml.BaseLoader"):
        return "can run code that its input names"  # BaseLoader gives text, lists and dicts only
    if "subprocess" in name and not any(path.match(starter) for starter in STARTERS):
        return "starts a process"
    if name == "torch.load" and keywords.get("weights_only") not in ("True", "not allow_pickle"):
        return "loads pickles"
    for option in ("allow_pickle", "trust_remote_code"):
        if keywords.get(option) == "True":
            return option
    return None


def test_nothing_is_called_that_runs_what_a_file_says():
    found = [(path, name, call, problem(path, name, call)) for path in FILES for name, call in calls(path)]
    assert len(found) > 1000, "the sources were read"
    wrong = [f"{path.relative_to(ROOT)}:{call.lineno}: {name} {text}" for path, name, call, text in found if text]
    assert not wrong, "\n".join(wrong)
