"""What a result file says, so that its number can be questioned; docs/evaluation.md explains every field."""

from __future__ import annotations

import datetime
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pmf.checkpoint.places import run_or_checkpoint
from pmf.config.sampling_options import Use, options_for
from pmf.config.sections import sampling_section
from pmf.distributed.world import World
from pmf.evaluation.extractors import Extractor
from pmf.evaluation.inception_score import SHUFFLE_SEED, SPLITS
from pmf.evaluation.meter import Measured, Scores, reliability_warnings
from pmf.evaluation.references import Reference
from pmf.evaluation.subjects import Subject
from pmf.files import write_json, writing

PACKAGES = ("pmf", "torch", "torch-fidelity", "numpy", "pillow")
PROTOCOL = {
    "features": "float32 without TF32 or autocast, of uint8 images that are not resized before the extractor",
    "covariance": "float64, divided by n - 1",
    "inception_score": f"{SPLITS} splits of the image indices, permuted with seed {SHUFFLE_SEED}",
}


def extractor_record(extractor: Extractor, dimension: int) -> dict[str, Any]:
    """Name, sha256 and number of features."""
    return {"name": extractor.name, "sha256": extractor.sha256, "features": dimension}


def fidelity_record(
    scores: Scores, *, subject: Subject, measured: Measured, extractor: Extractor, reference: Reference, world: World
) -> dict[str, Any]:
    """Plain values: the scores of a subject, as it was measured, then everything that they depend on."""
    dimension = measured.gaussian.dimension
    warnings = reliability_warnings(subject.num_images, reference.num_images, dimension)
    return {
        **asdict(scores),
        "num_images": subject.num_images,
        "image_shape": list(subject.shape),
        "images": subject.origin,
        "extractor": extractor_record(extractor, dimension),
        "reference": reference.origin,
        "protocol": PROTOCOL,
        "warnings": [*subject.warnings, *reference.warnings, *warnings],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "device": str(world.device),
        "processes": world.size,
        "command": sys.argv,
        "date": _now().isoformat(),
    }


def default_output(checkpoint: Path | None) -> Path:
    """A new file in the run folder's ``evaluation``; for anything but a run folder, in the current folder."""
    checkpoint = run_or_checkpoint(checkpoint) if checkpoint is not None else None
    is_run = checkpoint is not None and (checkpoint / "checkpoints").is_dir()
    folder = checkpoint / "evaluation" if checkpoint is not None and is_run else Path()
    return folder / f"fid_{_now():%Y%m%d_%H%M%S}.json"


def write_record(record: dict[str, Any], path: Path) -> None:
    """As JSON; complete or absent.

    Raises:
        UserError: where it cannot be written.
    """
    with writing(f"--output {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def print_table(record: dict[str, Any], path: Path) -> None:
    """The scores and what identifies them on stdout, the warnings on stderr."""
    for warning in record["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    extractor, images, reference = record["extractor"], record["images"], record["reference"]
    inception = extractor["name"].startswith("inception")
    rows = {"FID" if inception else f"FID of {extractor['name']}, not Inception": f"{record['fid']:.4f}"}
    if record["inception_score"]:
        rows["IS" if inception else f"IS of {extractor['name']}"] = _mean_and_std(record["inception_score"])
    if record["kid"]:
        rows["KID"] = _mean_and_std(record["kid"])
    rows |= {name: f"{value:.4f}" for name, value in (record["precision_recall"] or {}).items()}
    rows |= {
        "images": f"{record['num_images']} of {images.get('weights') or images['images']}",
        "reference": f"{reference['num_images'] or '?'} of {reference.get('file') or reference['images']}",
        "extractor": f"{extractor['name']} {extractor['sha256'][:16]}",
        "result": str(path),
    }
    if "checkpoint" in images:
        settings = ("seed", *options_for(sampling_section(), Use.IMAGES, Use.WEIGHTS))
        rows["sampling"] = ", ".join(f"{name} {images[name]}" for name in settings)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}s}  {value}")


def _mean_and_std(score: dict[str, float]) -> str:
    return f"{score['mean']:.5g} +- {score['std']:.2g}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
