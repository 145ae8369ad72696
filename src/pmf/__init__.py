"""Pixel Mean Flows in PyTorch.

    model = pmf.load("runs/digits")
    images = model.generate(labels=[3, 7], seed=0)

Importing this imports no torch; :func:`load` does. See docs/python.md.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pmf.errors import UserError

if TYPE_CHECKING:
    import torch

    from pmf.generator.model import Generator

__all__ = ["Generator", "UserError", "load"]
__version__: str


def load(
    source: str | os.PathLike[str],
    *,
    ema: str | float | None = None,
    config: str | os.PathLike[str] | None = None,
    key: str | None = None,
    autoencoder: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> Generator:
    """Weights, ready to make images.

    Args:
        source: a run folder, a checkpoint folder, a ``.safetensors`` file of this library, or what
            :meth:`Generator.save_pretrained` wrote, as a folder or by its name on the Hugging Face hub; with
            ``config`` also an official file (``.pt``, ``.pth``, JAX) or FD-Loss's. What exists on this machine goes
            before the hub.
        ema: which average of the weights, such as ``500`` (kimg) or ``0.9999``, or ``"online"``; None: what the run's
            config samples with.
        config: recipe of an official file, e.g. ``configs/pmf_b_16.yaml``.
        key: which set of weights of a PyTorch file that holds several.
        autoencoder: of latents, what decodes them: a name on the hub or a folder; None: the config's.
        device: where images are made; None: the first GPU if there is one, else the CPU.

    Raises:
        UserError: nothing there, damaged, or not what the arguments say; one line.
    """
    from pmf.generator.model import Generator

    return Generator.from_pretrained(source, ema=ema, config=config, key=key, autoencoder=autoencoder, device=device)


def __getattr__(name: str) -> Any:
    if name == "Generator":
        from pmf.generator.model import Generator

        return Generator
    if name == "__version__":
        from importlib.metadata import version

        return version("pmf")
    raise AttributeError(f"module 'pmf' has no attribute {name!r}")
