"""Feature networks: uint8 images in, features and class logits out. Each has a name and a sha256 for the record."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pmf.distributed.world import ALONE, World, float32_precision
from pmf.errors import UserError
from pmf.files import file_sha256

ImageShape = tuple[int, int, int]
"""Channels, height, width."""


@dataclass(frozen=True)
class Features:
    """Features of a batch of images.

    Attributes:
        values: (B, D) float: what distances are taken between.
        logits: (B, classes) float: what the Inception score is made of, where the network has a classifier.
    """

    values: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class OutputSizes:
    """Widths of an extractor's outputs; ``num_classes`` is None without a classifier."""

    features: int
    num_classes: int | None


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A frozen feature network on a device.

    Attributes:
        module: maps uint8 (B, C, H, W) to features (B, D), or to a tuple of features and logits (B, classes).
        sha256: of the weights' file, or of source and weights; two extractors with the same one are the same.
    """

    name: str
    sha256: str
    module: nn.Module
    device: torch.device

    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 (B, C, H, W), in float32 whatever autocast and TF32 are set to outside.

        Raises:
            UserError: the network fails on images of this shape, or returns something else than its contract says.
            TypeError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}; extractors take uint8, without any resizing before")
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False), float32_precision(tf32=False):
                output = self.module(images.to(self.device))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[-200:]
            raise UserError(
                f"extractor {self.name}: fails on images of shape {tuple(images.shape[1:])}: {reason}"
            ) from None
        values, logits = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
        for part in (values,) if logits is None else (values, logits):
            if not (isinstance(part, Tensor) and part.is_floating_point() and part.shape[:-1] == images.shape[:1]):
                raise UserError(
                    f"extractor {self.name}: must return features (B, D), or features and logits (B, classes), float"
                )
        return Features(values, logits)

    def output_sizes(self, shape: ImageShape) -> OutputSizes:
        """Found by trying two black images.

        Raises:
            UserError: as for a call.
        """
        features = self(torch.zeros(2, *shape, dtype=torch.uint8))
        return OutputSizes(
            features=features.values.shape[1],
            num_classes=None if features.logits is None else features.logits.shape[1],
        )


def freeze(name: str, sha256: str, module: nn.Module, device: torch.device) -> Extractor:
    """An extractor of a module: in evaluation mode on ``device``."""
    return Extractor(name=name, sha256=sha256, module=module.to(device).eval(), device=device)


def load_custom(name: str, world: World = ALONE) -> Extractor:
    """A user's own extractor; what its network takes and returns stands at :class:`Extractor`.

    Called by all processes; a file is hashed by the main one.

    Args:
        name: ``package.module:callable``, a callable without arguments that makes the network, or a TorchScript file.

    Raises:
        UserError: nothing of that name, or not a network.
    """
    module_name, separator, attribute = name.partition(":")
    if separator and not Path(name).exists():
        return _load_python(name, module_name, attribute, world.device)
    return _load_torchscript(Path(name), world)


def _load_python(name: str, module_name: str, attribute: str, device: torch.device) -> Extractor:
    try:
        module = importlib.import_module(module_name)
        create = getattr(module, attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--extractor {name}: {error}; give package.module:callable as Python would import it"
        ) from None
    network = create()
    if not isinstance(network, nn.Module):
        raise UserError(f"--extractor {name}: returned {type(network).__name__}; it must return a torch.nn.Module")
    source = inspect.getsourcefile(module)
    return freeze(name, weights_sha256(network, Path(source).read_bytes() if source else b""), network, device)


def _load_torchscript(path: Path, world: World) -> Extractor:
    if not path.is_file():
        raise UserError(
            f"--extractor {path}: there is no such file; give inception, digits, package.module:callable or a "
            "TorchScript file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have its newer formats
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(path), map_location=world.device)
    except Exception:  # damaged archives make torch raise what it likes
        raise UserError(f"--extractor {path}: is not a TorchScript file, as torch.jit.save writes it") from None
    return freeze(path.name, world.ask_main(lambda: file_sha256(path)), network, world.device)


def weights_sha256(network: nn.Module, source: bytes = b"") -> str:
    """Of ``source`` and of the names and values of a network's parameters and buffers, in hex."""
    digest = hashlib.sha256(source)
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
