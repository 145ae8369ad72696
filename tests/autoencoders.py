"""Stand-ins for the published autoencoder: of its architecture, a thousandth of its size, with seeded weights."""

from __future__ import annotations

from pathlib import Path

import torch

BLOCKS = 4


def write_autoencoder(folder: Path, seed: int = 0, **settings: object) -> Path:
    """An AutoencoderKL of 3 channels that makes latents of 4 at an eighth of the side, as save_pretrained writes it.

    Its last layers are enlarged, so that moments and decoded pixels spread as those of trained weights do.
    """
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = AutoencoderKL(
            **{
                "down_block_types": ("DownEncoderBlock2D",) * BLOCKS,
                "up_block_types": ("UpDecoderBlock2D",) * BLOCKS,
                "block_out_channels": (8,) * BLOCKS,
                "layers_per_block": 1,
                "norm_num_groups": 4,
                **settings,
            }
        )
        with torch.no_grad():
            autoencoder.quant_conv.weight *= 4
            autoencoder.decoder.conv_out.weight *= 4
    autoencoder.save_pretrained(folder)
    return folder
