"""A generator as files: traced once, written, compared with the network, and only then given their names."""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmf.config.sections import as_plain
from pmf.errors import UserError
from pmf.export.one_graph import OneGraph
from pmf.files import flush, printable, writing
from pmf.generator.model import Generator

TRACED_ROWS = 2
CHECKED_ROWS = (1, 3, 5)
"""Images of the batches that a file is compared on: none has as many rows as the traced one."""
TOLERANCE = 0.02
"""Grey levels that a value before rounding may differ by: some 1,300 steps of float32 at 255, room for the different
sums of other libraries in a deep network. A wrong input or layer moves images by whole levels."""
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def export_files(
    model: Generator, *, onnx: Path | None = None, pt2: Path | None = None, num_steps: int | None = None
) -> list[str]:
    """Write what was asked for; each file is complete or absent.

    Args:
        model: with its network on the CPU.
        onnx: an ONNX file; weights of more than 2 GB stand beside it, in a file of its name and ``.data``.
        pt2: a file for ``torch.export.load``.
        num_steps: network evaluations; None is the config's.

    Returns:
        A line for each file: what it is, and how well it agrees with the network.

    Raises:
        UserError: a library is missing, the network makes latents, storage fails, or a file's images are not those of
            the network.
    """
    if onnx is not None:
        require_libraries()
    graph = OneGraph(model, num_steps).eval()
    carried = describe(model, graph)
    lines = []
    with torch.no_grad(), _quiet():
        batch = torch.export.Dim("batch", min=1)
        shapes = {name: {0: batch} for name in ("noise", "label", *graph.guidance)}
        program = torch.export.export(graph, (), graph.example(TRACED_ROWS), dynamic_shapes=shapes)
        if pt2 is not None:
            with writing(f"--pt2 {pt2}"), _named_when_complete(pt2) as path:
                torch.export.save(program, path, extra_files={"pmf.json": json.dumps(carried)})
                lines.append(f"{pt2}: {_compare(graph, _run_pt2(path), pt2)}")
        if onnx is not None:
            with writing(f"--onnx {onnx}"), _named_when_complete(onnx) as path:
                _write_onnx(program, shapes, carried, path)
                lines.append(f"{onnx}: {_compare(graph, run_onnx(path), onnx)}")
    return lines


def require_libraries() -> None:
    """What ONNX files are written and run with is there.

    Raises:
        UserError: it is not.
    """
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f'{name} is not installed, which ONNX files need; uv sync --extra export, or pip install "pmf[export]"'
            ) from None


def describe(model: Generator, graph: OneGraph) -> dict[str, Any]:
    """What a file says of itself, as plain values."""
    return {
        "weights": model.weights_source,
        "class_names": list(model.class_names),
        "sampling": dict(graph.settings),
        "inputs": ["noise", "label", *graph.guidance],
        "noise": "standard normal, float32",
        "config": as_plain(model.config),
    }


def run_onnx(path: Path) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """What an ONNX file makes of inputs by name, on the CPU: (B, C, H, W) uint8."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        (image,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(image)

    return run


def _run_pt2(path: Path) -> Callable[[Mapping[str, Tensor]], Tensor]:
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        image: Tensor = module(**inputs)
        return image

    return run


def _write_onnx(
    program: torch.export.ExportedProgram,
    shapes: Mapping[str, Mapping[int, Any]],
    carried: Mapping[str, Any],
    path: Path,
) -> None:
    made = torch.onnx.export(
        program,
        input_names=list(shapes),
        output_names=["image"],
        dynamic_shapes={name: {0: "batch"} for name in shapes},
        dynamo=True,
        verbose=False,
    )
    assert made is not None, "with dynamo torch returns a program"
    for name, value in carried.items():
        made.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(printable(value))
    made.save(path)


def _compare(graph: OneGraph, run: Callable[[Mapping[str, Tensor]], Tensor], path: Path) -> str:
    """Compare images with the network's, in batches of several sizes.

    Each byte must be what a value within ``TOLERANCE`` of the network's own rounds to.

    Raises:
        UserError: one is not.
    """
    differing, total = 0, 0
    for rows in CHECKED_ROWS:
        inputs = graph.example(rows)
        levels, image = graph.levels(**inputs), run(inputs)
        if image.dtype != torch.uint8 or image.shape != levels.shape:
            raise UserError(f"{path}: gives {tuple(image.shape)} {image.dtype} for {rows} images; nothing was written")
        farthest = float((image - levels).abs().max())
        if not farthest <= 0.5 + TOLERANCE:  # NaN is not
            raise UserError(
                f"{path}: its images are not those of the network: a pixel of {rows} images is {farthest:.2f} grey "
                f"levels away, where rounding explains {0.5 + TOLERANCE}; nothing was written"
            )
        differing += int((image != levels.round()).sum())
        total += image.numel()
    return f"agrees with the network on {sum(CHECKED_ROWS)} images, {differing} of {total:,} bytes differ by 1"


@contextmanager
def _named_when_complete(path: Path) -> Iterator[Path]:
    """A path to write a file to, and others beside it; in the end all are moved to where they belong, the file last."""
    with tempfile.TemporaryDirectory(prefix=".incomplete_", dir=path.absolute().parent) as folder:
        yield Path(folder) / path.name
        written = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
        for file in written:
            flush(file)
            file.replace(path.absolute().parent / file.name)
    flush(path.absolute().parent)


@contextmanager
def _quiet(loggers: Sequence[str] = ("torch.onnx", "onnxscript", "onnx_ir")) -> Iterator[None]:
    """Without what torch's exporter says to its developers."""
    before = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
