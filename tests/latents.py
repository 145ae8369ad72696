"""A stand-in for the published autoencoder, of its architecture, with seeded weights; images, and their latents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from pmf.data.encoding import Encoding
from pmf.data.options import DataConfig

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


def write_published_config(folder: Path) -> None:
    """The configuration of stabilityai/sd-vae-ft-mse, without weights."""
    config = {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * BLOCKS,
        "up_block_types": ["UpDecoderBlock2D"] * BLOCKS,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))


SIZE = 32
"""Side of the images that the tests encode: latents of 4 x 4."""
NUM_CLASSES = 4
PER_CLASS = 50
SETTINGS = {"batch_size": 8, "shard_size": 24}
FLAGS = ("--batch-size", "8", "--shard-size", "24", "--num-workers", "0")
"""The same for the command: 200 images make eight shards and a smaller one."""


def write_jpegs(folder: Path) -> None:
    """JPEGs of random blots and sizes, in one folder for each class."""
    generator = np.random.default_rng(0)
    for number in range(NUM_CLASSES * PER_CLASS):
        file = folder / f"class_{number // PER_CLASS}" / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        blots = generator.integers(0, 256, (4, 5, 3), np.uint8)
        Image.fromarray(blots).resize(tuple(generator.integers(SIZE, 2 * SIZE, 2).tolist())).save(file)


def jpeg_config(jpegs: Path, autoencoder: Path) -> DataConfig:
    """The JPEGs as images to encode."""
    return DataConfig(
        kind="imagefolder",
        path=str(jpegs),
        image_size=SIZE,
        num_classes=NUM_CLASSES,
        num_workers=0,
        autoencoder=str(autoencoder),
    )


def latent_config(folder: Path, autoencoder: Path, **changes: object) -> DataConfig:
    """Their latents as a data set."""
    options = {"kind": "latents", "path": str(folder), "autoencoder": str(autoencoder), "num_workers": 0}
    return DataConfig.model_validate({"image_size": SIZE, "num_classes": NUM_CLASSES, **options, **changes})


def encode_jpegs(jpegs: Path, autoencoder: Path, output: Path, dtype: str = "float32") -> None:
    """Encode in this process, mirrored images too."""
    Encoding(jpeg_config(jpegs, autoencoder), output, dtype=dtype, mirror=True, **SETTINGS).run()


def contents(folder: Path) -> dict[str, bytes]:
    """The shards of an encoded folder, and its index without the names of classes, which not every set has."""
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "encoding.json"}
    index = {name: value for name, value in json.loads(files["index.json"]).items() if name != "class_names"}
    return {**files, "index.json": json.dumps(index).encode()}


def write_latent_weights(path: Path, autoencoder: Path) -> Path:
    """A network of latents with seeded weights, as one file whose config names the autoencoder."""
    from pmf.checkpoint.saved_weights import save_weights
    from pmf.config.network import network_of
    from pmf.config.yaml_file import config_from_plain

    data = latent_config(path.parent / "none", autoencoder)
    plain = {
        "model": {"name": "imf_tiny_2"},
        "objective": {"name": "imf"},
        "data": data.model_dump(mode="json"),
        "training": {"max_steps": 1},
    }
    config = config_from_plain(plain, "test")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in network_of(config, inference=True).state_dict().items()
    }
    save_weights(path, weights, config)
    return path


def write_official(folder: Path, encoded: Path) -> None:
    """The images of encoded shards as official files."""
    folder.mkdir()
    number = 0
    for shard in sorted(encoded.glob("*.safetensors")):
        tensors = load_file(shard)
        for moments, label in zip(tensors["moments"], tensors["labels"].tolist()):
            torch.save({"image": moments.clone(), "label": label}, folder / f"{number:08d}.pt")
            number += 1
