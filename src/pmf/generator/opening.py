"""From what a user names to a network with weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pmf.distributed.world import ALONE, float32_precision
from pmf.errors import UserError, first_line
from pmf.generation.command import PlannedImages, plan_images
from pmf.generation.sampling_request import SamplingRequest
from pmf.hub.repository import NAME, download
from pmf.options import expand_path, number_name

PathLike = str | os.PathLike[str]
FLAG = "--(config|key|ema|autoencoder)"
"""A flag of the commands that :func:`pmf.load` has as an argument."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What is to be opened, and how; see :func:`pmf.load`."""

    source: PathLike
    ema: str | float | None
    config: PathLike | None
    key: str | None
    autoencoder: PathLike | None
    device: str | torch.device | None


def open_weights(wanted: Opening) -> PlannedImages:
    """The network with its weights, and some plan of images.

    Raises:
        UserError: nothing there, damaged, or not what was asked for.
    """
    name = os.fspath(wanted.source)
    path = Path(expand_path(name))
    if not path.exists():
        if not NAME.fullmatch(name):
            raise UserError(f"{path}: there is no such file or folder")
        path = download(name)
    request = SamplingRequest(
        checkpoint=path,
        recipe=None if wanted.config is None else Path(expand_path(os.fspath(wanted.config))),
        num_images=1,
        labels="all",
        seed=0,
        ema=number_name(wanted.ema),
        overrides={},
        key=wanted.key,
        autoencoder=None if wanted.autoencoder is None else expand_path(os.fspath(wanted.autoencoder)),
    )
    # Loading sets the precision, as the commands want it, and a new network draws weights, from torch's own generator.
    with _in_words_of_python(), float32_precision(tf32=False), torch.random.fork_rng(devices=[]):
        return plan_images(request, replace(ALONE, device=_device(wanted.device)))


@contextmanager
def _in_words_of_python() -> Iterator[None]:
    """Errors that name arguments as :func:`pmf.load` has them, where the commands have flags.

    Raises:
        UserError: in place of that with flags.
    """
    try:
        yield
    except UserError as error:
        with_value = re.sub(rf"(^|leave out |\(|: ){FLAG} (?=\S)", r"\1\2=", str(error))
        told = re.sub(rf"(^|\s){FLAG}\b", r"\1\2=", with_value)
        if told == str(error):
            raise
        raise UserError(told) from None


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # no name of a device, or none that is here
        raise UserError(f"device {device}: cannot be used ({first_line(error)}); give cpu, cuda, cuda:1, ...") from None
    return found
