"""The autoencoder between images and latents: diffusers' AutoencoderKL, which comes with the extra ``latent``.

Each is loaded once in a process, for each device, and kept: codecs are made often.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pmf.data.options import LATENT_CHANNELS, LATENT_STRIDE
from pmf.errors import UserError
from pmf.tensors import tensors_sha256


class NoAutoencoderError(UserError):
    """There is none of that name, or none that can be read; the line ends with what to name instead."""


_LOADED: dict[tuple[str, str], Any] = {}


def load_autoencoder(name: str, device: torch.device) -> Any:
    """An ``AutoencoderKL`` in float32, for evaluation; the same object whenever it is asked for again.

    Args:
        name: on the Hugging Face hub, or a local folder that ``save_pretrained`` wrote.
        device: where it computes. On the meta device it has shapes and no weights, and the configuration alone is read.

    Raises:
        NoAutoencoderError: there is no such autoencoder, or it cannot be reached or read.
        UserError: diffusers is not installed, weights are missing, or its latents have other shapes than
            4 x side / 8 x side / 8.
    """
    key = (name, str(device))
    if key not in _LOADED:
        _LOADED[key] = _read(name, device).to(device).requires_grad_(False).eval()
    return _LOADED[key]


@cache
def autoencoder_sha256(name: str) -> str:
    """The sha256 of its weights by name, in hex; of those loaded already, or read for this and not kept.

    Raises:
        UserError: see :func:`load_autoencoder`.
    """
    loaded = [found for (known, device), found in _LOADED.items() if known == name and device != "meta"]
    autoencoder = loaded[0] if loaded else _read(name, torch.device("cpu"))
    return tensors_sha256(autoencoder.state_dict())


@torch.no_grad()
def encode_moments(autoencoder: Any, images: Tensor) -> Tensor:
    """The latent distributions of images.

    Args:
        images: (B, 3, H, W) in [-1, 1], on the autoencoder's device.

    Returns:
        (B, 8, H / 8, W / 8) float32: four channels of means, then four of standard deviations.
    """
    with torch.autocast(images.device.type, enabled=False):
        found = autoencoder.encode(images.float()).latent_dist
    return torch.cat([found.mean, found.std], dim=1)


@torch.no_grad()
def decode_latents(autoencoder: Any, latents: Tensor) -> Tensor:
    """The images of latents.

    Args:
        latents: (B, 4, h, w) as the autoencoder has them, on its device.

    Returns:
        (B, 3, 8 h, 8 w) float32, about in [-1, 1].
    """
    # The meta device has no autocast.
    with torch.autocast("cpu" if latents.is_meta else latents.device.type, enabled=False):
        images: Tensor = autoencoder.decode(latents.float()).sample
    return images


def _read(name: str, device: torch.device) -> Any:
    """One of the shapes that latents need, on the CPU, or on the meta device if ``device`` is that."""
    if importlib.util.find_spec("diffusers") is None:
        raise UserError(
            f"data.autoencoder {name}: latents need diffusers; install it: uv sync --extra latent, or pip install "
            '"pmf[latent]"'
        )
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # diffusers calls the hub in ways that the hub finds old
        autoencoder = _find(name, device)
    _require_shapes(name, autoencoder.config)
    return autoencoder


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which diffusers and the hub's library log nothing: they would tell of each attempt to connect."""
    from diffusers.utils import logging as of_diffusers

    of_hub = logging.getLogger("huggingface_hub")
    before = of_diffusers.get_verbosity(), of_hub.level
    of_diffusers.set_verbosity(of_diffusers.CRITICAL)
    of_hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        of_diffusers.set_verbosity(before[0])
        of_hub.setLevel(before[1])


def _find(name: str, device: torch.device) -> Any:
    """What is on this machine, or else on the hub."""
    on_meta = device.type == "meta"
    try:
        return _read_meta(name) if on_meta else _read_weights(name, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # OSError for most, and whatever safetensors, the hub and a foreign configuration raise
        if os.path.isdir(name):
            raise NoAutoencoderError(_why_not(name, error)) from None
        if on_meta:
            raise UserError(f"data.autoencoder {name} is not on this machine") from None
    try:
        return _read_weights(name, local_files_only=False)
    except Exception as error:
        raise NoAutoencoderError(_why_not(name, error)) from None


def _read_meta(name: str) -> Any:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL.from_config(AutoencoderKL.load_config(name, local_files_only=True))


def _read_weights(name: str, *, local_files_only: bool) -> Any:
    from diffusers import AutoencoderKL

    autoencoder, found = AutoencoderKL.from_pretrained(
        name,
        torch_dtype=torch.float32,
        use_safetensors=True,  # and no pickles
        local_files_only=local_files_only,
        output_loading_info=True,
    )
    if missing := found["missing_keys"]:
        raise UserError(f"data.autoencoder {name}: its weights lack {sorted(missing)[0]}; copy or download it again")
    return autoencoder


def _why_not(name: str, error: Exception) -> str:
    """One line for what diffusers says in several."""
    reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
    if os.path.isdir(name):
        return f"data.autoencoder {name}: cannot be read ({reason}); give what AutoencoderKL.save_pretrained wrote"
    if name.count("/") != 1 or name.startswith((".", "/")):
        return (
            f"data.autoencoder {name}: there is no such folder; give one that AutoencoderKL.save_pretrained wrote, or "
            "a name on the Hugging Face hub"
        )
    return (
        f"data.autoencoder {name}: is not on this machine, and the Hugging Face hub cannot be reached or does not have "
        "it; download it once, or give a folder that AutoencoderKL.save_pretrained wrote"
    )


def _require_shapes(name: str, config: Any) -> None:
    stride = 2 ** (len(config.block_out_channels) - 1)
    if (config.in_channels, config.latent_channels, stride) != (3, LATENT_CHANNELS, LATENT_STRIDE):
        raise UserError(
            f"data.autoencoder {name}: makes {config.latent_channels} channels at 1/{stride} of the side from "
            f"{config.in_channels}; data.kind latents takes {LATENT_CHANNELS} at 1/{LATENT_STRIDE} from 3"
        )
