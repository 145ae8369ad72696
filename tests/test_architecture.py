"""Imports point one way, and each outside library has one home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pmf"

# Each room may import the rooms listed for it, and itself.
FLOOR = {"errors", "config", "distributed", "strict", "files", "storage", "safetensors_file", "places", "parallel"}
MAY_IMPORT = {
    "errors": set(),
    "batching": {"errors", "config"},  # config as a type only
    "cross_checks": {"batching", "config"},  # config as a type only
    "config": {"errors", "batching", "cross_checks"},
    "configfile": {"errors", "config"},
    "distributed": {"errors", "config", "storage"},
    "strict": {"errors"},
    "files": {"errors", "storage"},
    "storage": {"errors"},
    "places": {"errors"},
    "safetensors_file": {"errors", "files", "storage"},
    "parallel": {"errors", "config", "batching", "distributed"},
    "net": FLOOR,
    "optim": FLOOR,
    "data": FLOOR,
    "perceptual": FLOOR,
    "flow": FLOOR,  # it sees a network as a callable
    "evaluation": FLOOR | {"flow", "data"},
    "flops": FLOOR | {"net", "flow", "perceptual"},
    "configedit": {"errors", "files"},
    "memory": FLOOR | {"batching", "configfile", "net", "optim", "flow", "perceptual"},
    "auto_batch": None,  # it runs the trainer
    "convert": FLOOR | {"configfile", "checkpoint", "net"},
    "checkpoint": FLOOR | {"configfile"},
    "tracking": FLOOR,
    "state": FLOOR | {"checkpoint", "optim"},
    "preflight": FLOOR | {"checkpoint"},
    "run_folder": FLOOR | {"configfile", "checkpoint"},
    "sampling": FLOOR | {"configfile", "checkpoint", "convert", "net", "evaluation"},
    "preemption": FLOOR,
    "watchdog": FLOOR,
    "fidelity": FLOOR | {"configfile", "checkpoint", "data", "evaluation", "sampling", "snapshots", "preemption"},
    "snapshots": FLOOR | {"preemption", "checkpoint", "run_folder", "sampling", "state", "evaluation"},
    "step": FLOOR | {"data", "flow", "optim", "preemption", "state"},
    "assembly": FLOOR | {"net", "flow", "optim", "perceptual", "flops", "preflight", "state", "step"},
    "doctor": None,
    "training": None,  # everything but the commands
}

# Library to the files (or folders) that may know it.
HOMES = {
    "torch.func": ["flow/derivative.py"],
    "accelerate": ["distributed.py"],
    "yaml": ["configfile.py", "configedit.py"],
    "pyarrow": ["data"],
    "datasets": ["data"],
    "sklearn": ["data"],
    "wandb": ["tracking.py"],
    "pydantic": ["config.py", "configfile.py"],
    "safetensors": ["safetensors_file.py", "perceptual/weights.py"],
    "torch_fidelity": ["evaluation"],
    "timm": ["perceptual/convnext.py", "evaluation"],
    "flax": ["convert/jax_checkpoint.py"],
    "orbax": ["convert/jax_checkpoint.py"],
    "jax": ["convert/jax_checkpoint.py"],
}

FILES = sorted(SOURCE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_room_is_on_the_plan():
    assert {room_of(path) for path in FILES} - {"__init__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    room = room_of(path)
    allowed = MAY_IMPORT.get(room, set())
    if allowed is None:
        return
    rooms = {name.split(".")[1] for name in imported_modules(path) if name.startswith("pmf.")}
    assert rooms <= allowed | {room}, f"{path}: imports {rooms - allowed - {room}}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_outside_libraries_stay_in_their_homes(path):
    here = str(path.relative_to(SOURCE))
    text = path.read_text()
    for library, homes in HOMES.items():
        if any(here == home or here.startswith(f"{home}/") for home in homes):
            continue
        names = imported_modules(path)
        assert not any(name == library or name.startswith(f"{library}.") for name in names), library
        if library == "torch.func":
            code = "\n".join(line for line in text.splitlines() if '"' not in line and "`" not in line)
            assert "torch.func" not in code


def test_the_configs_module_needs_neither_torch_nor_yaml():
    assert not {"torch", "yaml"} & {name.split(".")[0] for name in imported_modules(SOURCE / "config.py")}


def test_no_file_is_too_long_to_read_at_one_sitting():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 320} == {}
