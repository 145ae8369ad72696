"""The verbs ``eval.py fid`` and ``eval.py reference``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pmf.data.options import DataConfig
from pmf.distributed.world import join_world
from pmf.evaluation.extractor_table import open_extractor
from pmf.evaluation.meter import compare
from pmf.evaluation.record import default_output, extractor_record, fidelity_record, print_table, write_record
from pmf.evaluation.references import open_reference
from pmf.evaluation.statistics_file import save_statistics
from pmf.evaluation.subjects import checkpoint_subject, data_subject, images_subject, measure, named_subject
from pmf.generation.sampling_request import SamplingRequest


@dataclass(frozen=True, kw_only=True)
class FidelityRequest:
    """What ``eval.py fid`` was asked.

    Attributes:
        sampling: measure these images of a checkpoint; or else
        images: measure this folder of images, or ``.npz`` of images,
        num_images: the first so many of it; None is all.
        reference: see :func:`pmf.evaluation.references.open_reference`.
        extractor: see :func:`pmf.evaluation.extractor_table.open_extractor`.
        keep_images: write the generated images into this folder and measure them from there.
        output: the JSON; None names a new file.
    """

    sampling: SamplingRequest | None
    images: Path | None
    num_images: int | None
    reference: str
    extractor: str | None
    extractor_weights: Path | None
    keep_images: Path | None
    kid: bool
    precision_recall: bool
    output: Path | None


def report_fidelity(request: FidelityRequest) -> None:
    """Measure, compare, print a table and write the JSON.

    Raises:
        UserError: anything about the request, the checkpoint, the images or the reference that does not fit.
    """
    world = join_world()
    if request.sampling is not None:
        subject = checkpoint_subject(request.sampling, request.keep_images, world)
    else:
        assert request.images is not None
        subject = images_subject(request.images, request.num_images, world)
    extractor = open_extractor(request.extractor, request.extractor_weights, subject.shape, world)
    keep_features = request.kid or request.precision_recall
    reference = open_reference(request.reference, subject, extractor, world, keep_features=keep_features)
    measured = measure(subject, extractor, world, "images", keep_features=keep_features)
    if not world.is_main:
        return
    scores = compare(measured, reference.gaussian, reference.features, kid=request.kid, prc=request.precision_recall)
    record = fidelity_record(
        scores, subject=subject, measured=measured, extractor=extractor, reference=reference, world=world
    )
    output = request.output or default_output(request.sampling.checkpoint if request.sampling else None)
    write_record(record, output)
    print_table(record, output)


def write_reference(
    data: DataConfig, *, name: str | None, extractor: str | None, weights: Path | None, output: Path
) -> None:
    """Measure a data set and write a statistics file.

    Args:
        data: the data set; with a ``name`` only the size and channels that its images are prepared to.
        name: another set, see :func:`pmf.evaluation.subjects.named_subject`.
        extractor: see :func:`pmf.evaluation.extractor_table.open_extractor`.

    Raises:
        UserError: anything about the data, the extractor or the output that does not fit.
    """
    world = join_world()
    subject = named_subject(name, data, world) if name else data_subject(data, world)
    network = open_extractor(extractor, weights, subject.shape, world)
    measured = measure(subject, network, world, "images", keep_features=False)
    if world.is_main:
        for warning in subject.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        dimension = measured.gaussian.dimension
        protocol = {
            **subject.origin,
            "image_shape": list(subject.shape),
            "warnings": subject.warnings,
            "extractor": extractor_record(network, dimension),
        }
        save_statistics(output, measured.gaussian, subject.num_images, protocol)
        print(f"{subject.num_images} images, {dimension} features of {network.name}: {output}")
