"""Statistics of reference sets on disk: ours, and those that ADM, JiT and the pMF JAX code publish."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pmf.errors import UserError
from pmf.evaluation.frechet import Gaussian, require_gaussian
from pmf.files import complete_or_absent, file_sha256, parse_object, writing

# Layout to its keys for mean and covariance. Ours has the keys of the first and, besides, "n" and "protocol".
LAYOUTS = {"adm": ("mu", "sigma"), "pmf-jax": ("ref_mu", "ref_sigma")}
OURS = "pmf"


@dataclass(frozen=True, kw_only=True)
class SavedStatistics:
    """A statistics file.

    Attributes:
        layout: ``pmf`` (ours), ``adm`` (also JiT's) or ``pmf-jax``.
        num_images: None where the file does not say.
        protocol: how ours were made; empty for the others.
        sha256: of the file.
    """

    gaussian: Gaussian
    layout: str
    sha256: str
    num_images: int | None = None
    protocol: dict[str, Any] = field(default_factory=dict)


def save_statistics(path: Path, gaussian: Gaussian, num_images: int, protocol: dict[str, Any]) -> None:
    """Write ours: ``n``, ``mu``, ``sigma`` in float64 and ``protocol`` as JSON text; complete or absent.

    Raises:
        UserError: where it cannot be written, or for what :func:`load_statistics` would not read.
    """
    require_gaussian(gaussian, str(path))
    with writing(str(path), "choose another --output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_or_absent(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                n=np.int64(num_images),
                mu=gaussian.mean.numpy(),
                sigma=gaussian.covariance.numpy(),
                protocol=np.str_(json.dumps(protocol)),
            )


def holds_statistics(names: Set[str]) -> bool:
    """Whether arrays of these names are one of the layouts."""
    return any(names >= set(keys) for keys in LAYOUTS.values())


def load_statistics(path: Path) -> SavedStatistics:
    """Read any of the layouts, recognised by its keys.

    Raises:
        UserError: no such file, not an ``.npz``, damaged, other keys, or statistics of nothing: see
            :func:`pmf.evaluation.frechet.require_gaussian`.
    """
    arrays, names = _read_arrays(path)
    layout = next((layout for layout, keys in LAYOUTS.items() if arrays.keys() >= set(keys)), None)
    if layout is None:
        known = " or ".join(" and ".join(keys) for keys in LAYOUTS.values())
        raise UserError(f"{path}: holds {', '.join(names) or 'nothing'}; a statistics file holds {known}")
    for key in LAYOUTS[layout]:
        if arrays[key].dtype.kind not in "fiu":
            raise UserError(f"{path}: {key} is of {arrays[key].dtype}, not of numbers; make the statistics again")
    gaussian = Gaussian(*(torch.from_numpy(arrays[key].astype(np.float64)) for key in LAYOUTS[layout]))
    require_gaussian(gaussian, str(path))
    digest = file_sha256(path)
    if not arrays.keys() >= {"n", "protocol"}:
        return SavedStatistics(gaussian=gaussian, layout=layout, sha256=digest)
    count = arrays["n"]
    if count.ndim or count.dtype.kind not in "iu" or count < 2:
        raise UserError(f"{path}: its n is no number of images; make the statistics again")
    return SavedStatistics(
        gaussian=gaussian, layout=OURS, sha256=digest, num_images=int(count), protocol=_protocol(arrays, path)
    )


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that a layout may have, each checked against the archive's checksum; and the names of all."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            wanted = [name for name in ("n", "protocol", *sum(LAYOUTS.values(), ())) if name in names]
            # numpy by itself may stop reading before the checksum
            members = {name: io.BytesIO(archive.read(f"{name}.npy")) for name in wanted}
        return {name: np.load(member, allow_pickle=False) for name, member in members.items()}, names
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # a damaged archive makes zipfile, zlib and numpy raise what they like
        raise UserError(
            f"{path}: is damaged, or is not an .npz file of plain arrays; write one with eval.py reference"
        ) from None


def _protocol(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """How ours were made."""
    advice = "make the statistics again"
    protocol = parse_object(str(arrays["protocol"]), f"{path}: its protocol", advice)
    extractor = protocol.get("extractor", {"name": "", "sha256": ""})
    shape = protocol.get("image_shape", [])
    if not (
        isinstance(extractor, dict)
        and all(isinstance(extractor.get(key), str) for key in ("name", "sha256"))
        and isinstance(shape, list)
    ):
        raise UserError(f"{path}: its protocol names no extractor or shape; {advice}")
    return protocol
