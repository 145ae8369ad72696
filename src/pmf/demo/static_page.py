"""A folder that any file server can serve: the ONNX file, onnxruntime for browsers, and a page without a framework."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from pmf.errors import UserError
from pmf.export.formats import describe, export_files, require_libraries
from pmf.export.one_graph import OneGraph
from pmf.files import printable, writing
from pmf.generator.model import Generator

PACKAGE = "onnxruntime-web"
# One thread, WebAssembly alone: what works without headers of its own on any file server.
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
BROWSER_BYTES = 2 * 10**9
"""Of weights, that the 4 GB which WebAssembly can address hold beside a network's activations."""
SHOWN_SETTINGS = ("weights", "class_names", "sampling", "inputs")
"""Of what an ONNX file says of itself, for the page: browsers cannot read it there."""


def write_page(model: Generator, folder: Path, runtime: Path | None = None) -> str:
    """Write ``index.html`` and all that it needs; the folder is complete or absent.

    Args:
        model: with its network on the CPU.
        folder: must not exist, but the folder that it is in.
        runtime: an unpacked npm package onnxruntime-web; None looks for one, and has npm fetch it.

    Returns:
        A line that says how well the page's model agrees with the network.

    Raises:
        UserError: a folder or library is missing, or see :func:`pmf.export.formats.export_files`.
    """
    require_libraries()
    size = sum(tensor.nbytes for tensor in model.network.state_dict().values())
    if size > BROWSER_BYTES:
        raise UserError(f"--export: weights of {size / 1e9:.1f} GB do not fit into a browser; the app shows them all")
    with (
        writing(f"--export {folder}"),
        tempfile.TemporaryDirectory(prefix=".incomplete_", dir=folder.absolute().parent) as made,
        _runtime_folder(runtime) as package,
    ):
        page = Path(made) / "page"  # with the rights that new folders have; the temporary one is its owner's alone
        (page / "onnxruntime").mkdir(parents=True)
        for name in RUNTIME_FILES:
            shutil.copyfile(package / "dist" / name, page / "onnxruntime" / name)
        for source in resources.files("pmf.demo").joinpath("page").iterdir():
            (page / source.name).write_bytes(source.read_bytes())
        (line,) = export_files(model, onnx=page / "model.onnx")
        carried = describe(model, OneGraph(model))
        shown = {name: carried[name] for name in SHOWN_SETTINGS} | {"shape": model.image_shape}
        (page / "model.json").write_text(json.dumps(printable(shown), indent=1) + "\n")
        page.rename(folder)
    return f"{folder}: model.onnx {line.partition(': ')[2]}"


@contextmanager
def _runtime_folder(given: Path | None) -> Iterator[Path]:
    """The unpacked npm package: as given, from a node_modules here or above, or fetched by npm.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        if missing := [name for name in RUNTIME_FILES if not (given / "dist" / name).is_file()]:
            raise UserError(f"--onnxruntime-web {given}: has no dist/{missing[0]}; give the folder of the npm package")
        yield given
        return
    for above in (Path.cwd(), *Path.cwd().parents):
        found = above / "node_modules" / PACKAGE
        if all((found / "dist" / name).is_file() for name in RUNTIME_FILES):
            yield found
            return
    with tempfile.TemporaryDirectory() as folder:
        yield fetch_runtime(Path(folder))


def fetch_runtime(folder: Path) -> Path:
    """Have npm fetch the package into a folder that exists; returns where it is unpacked.

    Raises:
        UserError: there is no npm, or it cannot reach its registry.
    """
    advice = f"run npm install {PACKAGE} here, or name its folder with --onnxruntime-web"
    try:
        subprocess.run(["npm", "pack", f"{PACKAGE}@1"], cwd=folder, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError(f"the page needs {PACKAGE} of npm, and there is no npm here; {advice}") from None
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if line.startswith("npm error")), "")
        raise UserError(f"npm cannot fetch {PACKAGE} ({reason or 'npm failed'}); {advice}") from None
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / "package"
