"""Imports point one way, and each outside library has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pmf"

# Rooms from the ground up. A room imports from lower floors and from itself, never from its own floor or above.
FLOORS = [
    {"errors", "tables", "randomness", "compilers"},
    {"files", "options"},
    {"tensors", "distributed"},
    {"commands"},
    {"net", "optim", "data", "perceptual"},
    {"flow"},  # it sees a network as a callable
    {"config"},  # the whole run's options; rooms below know their own section only
    {"checkpoint"},
    {"generation"},
    {"evaluation", "costs"},
    {"report"},
    {"hub"},
    {"generator"},
    {"export"},
    {"demo", "training"},
    {"auto_batch", "doctor", "convert"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# File names that stand in several rooms, and mean the same in each.
SHARED_NAMES = {
    "__init__": "what lives in the room",
    "__main__": "the room's command",
    "options": "the room's section of the config",
    "command": "what a command at the top calls",
    "record": "what a command leaves as JSON",
}

# Library to the files (or folders) that may know it.
HOMES = {
    "torch.func": ["flow/derivative.py"],
    "triton": ["net/attention_kernel.py", "optim/symmetric_product_kernel.py"],
    "accelerate": ["distributed/world.py", "training/trackers.py", "training/tracker_kinds.py"],
    "yaml": ["config", "hub/card.py"],
    "pyarrow": ["data"],
    "datasets": ["data"],
    "simplejpeg": ["data/transforms.py"],
    "sklearn": ["data"],
    "wandb": ["training/tracker_kinds.py"],
    "tensorboard": ["training/tracker_kinds.py"],
    "trackio": ["training/tracker_kinds.py"],
    "matplotlib": ["report/curves.py", "evaluation/sweep.py"],
    "pydantic": ["options.py", "tables.py", "config", "flow/objective.py", "*/options.py"],
    "safetensors": ["tensors.py", "perceptual/weights.py"],
    "torch_fidelity": ["evaluation"],
    "timm": ["perceptual/convnext.py", "evaluation", "data/class_names.py"],
    "diffusers": ["data/autoencoder.py", "hub/location.py", "hub/pipeline.py"],
    "huggingface_hub": ["hub/repository.py"],
    "onnx": ["export/formats.py"],
    "onnxruntime": ["export/formats.py"],
    "gradio": ["demo/app.py"],
    "flax": ["checkpoint/official/jax_checkpoint.py"],
    "argcomplete": ["commands.py", "config/command_line.py", "cli/completion.py"],
    "orbax": ["checkpoint/official/jax_checkpoint.py"],
    "jax": ["checkpoint/official/jax_checkpoint.py"],
}

# Lines; about 250 are what a file should have.
LONGEST = 300


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


MODULES = {"pmf." + file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in IMPORTS}


def test_every_room_is_on_the_plan():
    unknown = {room_of(file) for file in IMPORTS} ^ {"__init__", *FLOOR_OF}
    assert not unknown, unknown


def test_imports_point_down():
    wrong = []
    for file, names in IMPORTS.items():
        wrong += [f"{file}: {name}" for name in names if name.startswith(".")]
        room = room_of(file)
        for other in {name.split(".")[1] for name in names if name.startswith("pmf.")} - {room}:
            if room != "__init__" and FLOOR_OF[other] >= FLOOR_OF[room]:
                wrong.append(f"{file}: {other}")
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle():
    ahead = {file: {MODULES[name] for name in names if name in MODULES} - {file} for file, names in IMPORTS.items()}
    while free := [file for file, needs in ahead.items() if not needs & ahead.keys()]:
        for file in free:
            del ahead[file]
    assert not ahead, sorted(ahead)


def test_a_file_name_has_one_meaning():
    files: dict[str, list[str]] = {}
    for file in IMPORTS:
        files.setdefault(Path(file).stem, []).append(file)
    rooms = {Path(file).parts[0] for file in IMPORTS if "/" in file}
    wrong = [found for name, found in files.items() if name not in SHARED_NAMES and len(found) + (name in rooms) > 1]
    assert not wrong, wrong


def test_outside_libraries_stay_in_their_homes():
    wrong = []
    for library, homes in HOMES.items():
        for file, names in IMPORTS.items():
            if any(fnmatch(file, home) or file.startswith(f"{home}/") for home in homes):
                continue
            wrong += [f"{file}: {name}" for name in names if name == library or name.startswith(f"{library}.")]
            if library == "torch.func":  # usable without an import of its own
                lines = (SOURCE / file).read_text().splitlines()
                code = (line for line in lines if '"' not in line and "`" not in line)
                wrong += [f"{file}: {line.strip()}" for line in code if "torch.func" in line]
    assert not wrong, "\n".join(wrong)


def test_methods_and_architectures_are_named_in_their_rooms_only():
    """Everything else goes through the tables, so that a method or a network is one file."""
    own = {
        "flow": ("mean_flow", "ImprovedMeanFlow", "PixelMeanFlow"),  # "MeanFlow" is a word of prose too
        "net": tuple(
            part
            for name in ("Pixel", "Imf", "Diffusion")
            for part in (f"{name}Transformer", f"{name.lower()}_transformer")
        ),
    }
    official = "checkpoint/official/"  # published files are of certain networks
    wrong = [
        f"{file}: {name}"
        for room, names in own.items()
        for file in IMPORTS
        for name in names
        if room_of(file) != room and not file.startswith(official) and name in (SOURCE / file).read_text()
    ]
    assert not wrong, "\n".join(wrong)


def test_reading_a_config_needs_no_torch():
    code = "import sys, pmf.config.yaml_file, pmf.config.inputs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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
