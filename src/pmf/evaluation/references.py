"""What images are compared with: a statistics file, or images that are measured on the spot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pmf.distributed.world import World
from pmf.errors import UserError
from pmf.evaluation.extractors import Extractor
from pmf.evaluation.frechet import Gaussian
from pmf.evaluation.npz_images import ARRAY, array_names
from pmf.evaluation.statistics_file import holds_statistics, load_statistics
from pmf.evaluation.subjects import Subject, measure, named_subject


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a set is compared with.

    Attributes:
        num_images: None where a statistics file does not say.
        features: (M, D), where they were asked for.
        origin: for the record.
        warnings: reasons to doubt that the two can be compared.
    """

    gaussian: Gaussian
    num_images: int | None
    features: Tensor | None
    origin: dict[str, Any]
    warnings: list[str]


def open_reference(
    name: str, subject: Subject, extractor: Extractor, world: World, *, keep_features: bool
) -> Reference:
    """Load or measure a reference; called by all processes.

    Args:
        name: a statistics file (``.npz``), or a set of images as
            :func:`pmf.evaluation.subjects.named_subject` takes it.
            A file of both, as ADM publishes them, gives its statistics for the distance and its images for the rest.
        subject: what will be compared with it.
        keep_features: KID, precision and recall need every feature vector.

    Raises:
        UserError: nothing of that name, other shapes or dimensions, or another extractor than the file's.
    """
    arrays = array_names(Path(name)) if Path(name).suffix.lower() == ".npz" else None
    if arrays is None or (ARRAY in arrays and not holds_statistics(arrays)):
        return _measure(name, subject, extractor, world, keep_features=keep_features)
    if keep_features and ARRAY not in arrays:
        raise UserError(
            f"--reference {name}: holds statistics only; --kid and --precision-recall need the images themselves"
        )
    saved = _load(Path(name), subject, extractor, world)
    if not keep_features:
        return saved
    images = _measure(name, subject, extractor, world, keep_features=True)
    origin = {**saved.origin, "features_of": images.origin}
    return replace(saved, features=images.features, origin=origin, warnings=saved.warnings + images.warnings)


def _measure(name: str, subject: Subject, extractor: Extractor, world: World, *, keep_features: bool) -> Reference:
    images = named_subject(name, subject.data, world)
    if images.shape != subject.shape:
        raise UserError(
            f"--reference {name}: its images have shape {images.shape} (channels, height, width), the measured ones "
            f"{subject.shape}; give a reference of the same shape"
        )
    measured = measure(images, extractor, world, "reference", keep_features=keep_features)
    return Reference(
        gaussian=measured.gaussian,
        num_images=measured.num_images,
        features=measured.features,
        origin={**images.origin, "num_images": measured.num_images, "sha256": None},
        warnings=images.warnings,
    )


def _load(path: Path, subject: Subject, extractor: Extractor, world: World) -> Reference:
    saved = world.ask_main(lambda: load_statistics(path))
    dimension = extractor.output_sizes(subject.shape).features
    if saved.gaussian.dimension != dimension:
        raise UserError(
            f"--reference {path}: has {saved.gaussian.dimension} dimensions and extractor {extractor.name} has "
            f"{dimension}; give the --extractor that it was made with"
        )
    made_with = saved.protocol.get("extractor")
    if made_with and made_with["sha256"] != extractor.sha256:
        raise UserError(
            f"--reference {path}: was made with extractor {made_with['name']} {made_with['sha256'][:16]}, this one is "
            f"{extractor.name} {extractor.sha256[:16]}; give the --extractor that it was made with"
        )
    shape = tuple(saved.protocol.get("image_shape", subject.shape))
    other = [f"the reference has images of shape {shape}, not {subject.shape}"] if shape != subject.shape else []
    return Reference(
        gaussian=saved.gaussian,
        num_images=saved.num_images,
        features=None,
        origin={
            "file": str(path),
            "sha256": saved.sha256,
            "layout": saved.layout,
            "num_images": saved.num_images,
            "protocol": saved.protocol,
        },
        warnings=[*other, *saved.protocol.get("warnings", [])],
    )
