"""Statistics of reference sets on disk: ours, and those that ADM, JiT and the pMF JAX code publish."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pmf.errors import UserError
from pmf.evaluation.frechet import Gaussian
from pmf.files import complete_or_absent
from pmf.storage import writing

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
        UserError: where it cannot be written.
    """
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


def load_statistics(path: Path) -> SavedStatistics:
    """Read any of the layouts, recognised by its keys.

    Raises:
        UserError: no such file, not an ``.npz``, other keys, shapes that do not fit, values that are not finite.
    """
    try:
        content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("n", "protocol", *sum(LAYOUTS.values(), ())) if name in archive}
            names = archive.files
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile):  # TypeError: an .npy file
        raise UserError(f"{path}: is not an .npz file of plain arrays; write one with eval.py reference") from None
    layout = next((layout for layout, keys in LAYOUTS.items() if arrays.keys() >= set(keys)), None)
    if layout is None:
        known = " or ".join(" and ".join(keys) for keys in LAYOUTS.values())
        raise UserError(f"{path}: holds {', '.join(names) or 'nothing'}; a statistics file holds {known}")
    mean, covariance = (arrays[key] for key in LAYOUTS[layout])
    _check(path, mean, covariance)
    gaussian = Gaussian(*(torch.from_numpy(array.astype(np.float64)) for array in (mean, covariance)))
    digest = sha256(content).hexdigest()
    if not arrays.keys() >= {"n", "protocol"}:
        return SavedStatistics(gaussian=gaussian, layout=layout, sha256=digest)
    return SavedStatistics(
        gaussian=gaussian,
        layout=OURS,
        sha256=digest,
        num_images=int(arrays["n"]),
        protocol=json.loads(str(arrays["protocol"])),
    )


def _check(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: the mean has shape {mean.shape} and the covariance {covariance.shape}, "
            "not (D,) and (D, D); make the statistics again"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: holds values that are not finite; make the statistics again")
