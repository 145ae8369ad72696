"""Imports point one way, and each outside library has one home."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pmf"

# Each room may import the rooms listed for it, and itself.
FLOOR = {
    "errors",
    "option_types",
    "config",
    "distributed",
    "strict",
    "files",
    "storage",
    "safetensors_file",
    "places",
    "parallel",
}
MAY_IMPORT = {
    "errors": set(),
    "batching": {"errors", "config"},  # config as a type only
    "cross_checks": {"batching", "config"},  # config as a type only
    "option_types": {"files"},
    "config": {"errors", "batching", "cross_checks", "option_types"},
    "overrides": set(),
    "configfile": {"errors", "config", "option_types", "files", "overrides"},
    "distributed": {"errors", "config", "storage"},
    "strict": {"errors"},
    "integrity": {"errors", "strict", "files", "places"},
    "files": {"errors", "storage"},
    "storage": {"errors"},
    "places": {"errors"},
    "safetensors_file": {"errors", "files", "storage"},
    "launcher": {"errors"},
    "commands": {"errors", "files", "launcher", "overrides", "storage", "distributed"},
    "inputs": {"errors", "config", "configfile", "batching", "net", "optim"},  # sizes and schedules: without torch
    "parallel": {"errors", "config", "batching", "distributed"},
    "net": FLOOR,
    "optim": FLOOR,
    "data": FLOOR | {"cross_checks"},
    "perceptual": FLOOR,
    "flow": FLOOR,  # it sees a network as a callable
    "evaluation": FLOOR | {"flow", "data"},
    "flops": FLOOR | {"net", "flow", "perceptual"},
    "configedit": {"errors", "files"},
    "memory": FLOOR | {"batching", "commands", "inputs", "configfile", "net", "optim", "flow", "perceptual"},
    "auto_batch": None,  # it runs the trainer
    "convert": FLOOR | {"commands", "inputs", "configfile", "checkpoint", "integrity", "net"},
    "checkpoint": FLOOR | {"configfile", "integrity"},
    "tracking": FLOOR,
    "state": FLOOR | {"checkpoint", "optim"},
    "preflight": FLOOR | {"integrity"},
    "run_folder": FLOOR | {"configfile", "checkpoint", "integrity"},
    "sampling": FLOOR | {"configfile", "checkpoint", "convert", "integrity", "net", "evaluation"},
    "preemption": FLOOR,
    "watchdog": FLOOR,
    "fidelity": FLOOR | {"configfile", "checkpoint", "data", "evaluation", "sampling", "snapshots", "preemption"},
    "snapshots": FLOOR | {"preemption", "checkpoint", "run_folder", "sampling", "state", "evaluation"},
    "step": FLOOR | {"data", "flow", "optim", "preemption", "state"},
    "assembly": FLOOR | {"net", "flow", "optim", "perceptual", "flops", "preflight", "state", "step"},
    "doctor": None,
    "examination": None,
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
    "pydantic": ["option_types.py", "config.py", "configfile.py", "overrides.py"],
    "safetensors": ["safetensors_file.py", "perceptual/weights.py"],
    "torch_fidelity": ["evaluation"],
    "timm": ["perceptual/convnext.py", "evaluation"],
    "flax": ["convert/jax_checkpoint.py"],
    "orbax": ["convert/jax_checkpoint.py"],
    "jax": ["convert/jax_checkpoint.py"],
}

# Lines; about 250 are what a file should have.
LONGEST = 320


def imported_modules(path: Path) -> set[str]:
    """Modules and what is taken from them, by their dotted names; relative imports begin with a dot."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + str(node.module or "")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


IMPORTS = {str(path.relative_to(SOURCE)): imported_modules(path) for path in sorted(SOURCE.rglob("*.py"))}
"""What each file of the library imports."""


def room_of(file: str) -> str:
    return Path(file).parts[0].removesuffix(".py")


def test_every_room_is_on_the_plan():
    unknown = {room_of(file) for file in IMPORTS} - {"__init__", *MAY_IMPORT}
    assert not unknown, unknown


def test_imports_point_down():
    wrong = []
    for file, names in IMPORTS.items():
        wrong += [f"{file}: {name}" for name in names if name.startswith(".")]
        room = room_of(file)
        allowed = MAY_IMPORT.get(room, set())
        if allowed is not None:
            rooms = {name.split(".")[1] for name in names if name.startswith("pmf.")}
            wrong += [f"{file}: {other}" for other in rooms - allowed - {room}]
    assert not wrong, "\n".join(wrong)


def test_outside_libraries_stay_in_their_homes():
    wrong = []
    for library, homes in HOMES.items():
        for file, names in IMPORTS.items():
            if any(file == home or file.startswith(f"{home}/") for home in homes):
                continue
            wrong += [f"{file}: {name}" for name in names if name == library or name.startswith(f"{library}.")]
            if library == "torch.func":  # usable without an import of its own
                lines = (SOURCE / file).read_text().splitlines()
                code = (line for line in lines if '"' not in line and "`" not in line)
                wrong += [f"{file}: {line.strip()}" for line in code if "torch.func" in line]
    assert not wrong, "\n".join(wrong)


def test_the_configs_module_needs_neither_torch_nor_yaml():
    assert not {"torch", "yaml"} & {name.split(".")[0] for name in IMPORTS["config.py"]}


def test_no_file_is_too_long_to_read_at_one_sitting():
    lengths = {file: len((SOURCE / file).read_text().splitlines()) for file in IMPORTS}
    too_long = {file: length for file, length in lengths.items() if length > LONGEST}
    assert not too_long, too_long


def test_no_test_module_is_imported():
    """What several tests share stands in a conftest.py, as fixtures, or in a module that holds no tests."""
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in imported_modules(path)
        if name.startswith("tests.") and any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    ]
    assert not wrong, "\n".join(wrong)
