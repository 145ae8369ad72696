"""Published weights of frozen networks: find or download the files, read them safely, hand them over by name."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pmf.errors import UserError
from pmf.files import file_format
from pmf.perceptual.options import PerceptualConfig
from pmf.tensors import download_once, hub_path

FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
HELP = "docs/perceptual.md says which files there are"


def load_published(network: nn.Module, key: str, sources: Sequence[str], names: Sequence[tuple[str, str]]) -> None:
    """Fill a network with published weights; tensors that it does not have (a classifier) are left out.

    Args:
        key: the option that names the files, for messages.
        sources: one or more files that hold all weights together; see :func:`find_file`.
        names: patterns and replacements, applied in order, from published names to the network's.

    Raises:
        UserError: a file is missing, cannot be read, or is of another network.
    """
    found: dict[str, Tensor] = {}
    for source in sources:
        for name, tensor in read_published(find_file(source, key), key).items():
            for pattern, replacement in names:
                name = re.sub(pattern, replacement, name)
            found[name] = tensor
    weights = {}
    for name, own in network.state_dict().items():
        there = found.get(name)
        if there is None or without_ones(there) != without_ones(own):
            problem = "missing" if there is None else f"{tuple(there.shape)} there and {tuple(own.shape)} here"
            raise UserError(f"{key}: {', '.join(sources)}: weights of another network: {name} is {problem}; {HELP}")
        weights[name] = there.reshape(own.shape)
    network.load_state_dict(weights)


def without_ones(tensor: Tensor) -> list[int]:
    """The shape but for axes of length 1, which published files add or leave out."""
    return [length for length in tensor.shape if length != 1]


def find_file(source: str, key: str) -> Path:
    """The local file of a source, downloaded at first use.

    Args:
        source: a path, a URL, or a model on the Hugging Face hub (``owner/name``, or a timm name with its tag).
        key: the option that names it, for messages.

    Raises:
        UserError: there is no such file, or it cannot be downloaded; says what to put where.
    """
    path = Path(source)
    if path.is_file():
        return path
    url = url_of(source)
    if url is None:
        published = getattr(PerceptualConfig(), key.removeprefix("perceptual."))
        urls = " and ".join(str(url_of(default)) for default in published)
        raise UserError(
            f"{key}: {path}: there is no such file; download {urls} and give the place here, or leave this option out "
            "and the run downloads at its start"
        )
    name = file_name(source)
    try:
        return download_once(url, name)
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(
            f"{key}: {url} cannot be downloaded to this machine ({error}); download it elsewhere and put it at "
            f"{hub_path(name)}"
        ) from None


def url_of(source: str) -> str | None:
    """Where to download a source; None for a local path."""
    if source.startswith(("https://", "http://")):
        return source
    if source.endswith(FILE_ENDINGS) or not re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", source):
        return None
    model = source if "/" in source else f"timm/{source}"
    return f"https://huggingface.co/{model}/resolve/main/model.safetensors"


def file_name(source: str) -> str:
    """The name of the downloaded copy: the URL's own, or the model's, because files on the hub are all named alike."""
    if "://" in source:
        return source.rpartition("/")[2].partition("?")[0]
    return f"{source.replace('/', '--')}.safetensors"


def read_published(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a pickle, whose code is never run.

    Args:
        key: the option that names the file, for messages.

    Raises:
        UserError: the file is truncated, or is something else.
    """
    with path.open("rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            raise UserError(f"{key}: {path}: is a web page, not weights; download the file that the page links to")
    try:
        if path.suffix == ".safetensors" or file_format(path) == "safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{key}: {path}: holds more than tensors, or no tensors; no other pickle is loaded; {HELP}"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition(". ")[0] or "it is empty"
        raise UserError(f"{key}: {path}: cannot be read as weights ({reason}); delete it and get it again") from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]  # Meta's files
    if not isinstance(content, Mapping):
        raise UserError(f"{key}: {path}: holds a {type(content).__name__} instead of named tensors; {HELP}")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions as float32, for sums of squares under autocast; others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
