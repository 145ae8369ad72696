"""Images to moments of latents, as data.kind latents reads them: %(prog)s --help.

Alone, or on any number of processes: torchrun --nproc_per_node 8 -m pmf encode ... Started again after an
interruption, it goes on with the shards that are not there yet; the files come out the same, bit for bit. On CPUs a
process computes with one thread: start as many as there are cores.
"""

from __future__ import annotations

import argparse
from typing import get_args

from pmf.commands import CommandParser, path_text, program, run_command, to_path, whole_from
from pmf.data.options import LATENT_STRIDE, DataConfig, missing_folder, section_problems
from pmf.errors import UserError
from pmf.options import FLOAT, number

KINDS = ("parquet", "imagefolder")
DEFAULTS = {name: field.default for name, field in DataConfig.model_fields.items()}


def main() -> None:
    """Parse, check what can be checked without torch, and encode."""
    arguments = _parser().parse_args()
    if arguments.image_size % LATENT_STRIDE:
        raise UserError(f"--image-size {arguments.image_size}: give a multiple of {LATENT_STRIDE}")
    options = {name: getattr(arguments, name) for name in DEFAULTS if hasattr(arguments, name)}
    data = DataConfig(path=arguments.data_path, **options)
    for key, problem in section_problems(data):
        raise UserError(f"{key} {problem}")
    if missing := missing_folder(data):
        raise UserError(missing)

    # Only now: importing torch's stack takes seconds.
    from pmf.data.encoding import Encoding

    Encoding(
        data,
        arguments.output,
        dtype=arguments.dtype,
        mirror=arguments.mirror,
        batch_size=arguments.batch_size,
        shard_size=arguments.shard_size,
    ).run()


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=program("python -m pmf.data.encode"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    images = parser.add_argument_group("images, as the options of the data section")
    images.add_argument("--data-path", type=path_text, required=True, help="folder of the data set")
    images.add_argument("--kind", choices=KINDS, default="parquet", help="default: parquet")
    for name in ("split", "image_column", "label_column"):
        images.add_argument(_flag(name), default=DEFAULTS[name], help=f"default: {DEFAULTS[name]}")
    for name, least in (("image_size", 1), ("num_classes", 1), ("num_workers", 0)):
        images.add_argument(
            _flag(name), type=whole_from(least), default=DEFAULTS[name], help=f"default: {DEFAULTS[name]}"
        )
    images.add_argument(
        "--resampling",
        choices=get_args(DataConfig.model_fields["resampling"].annotation),
        default=DEFAULTS["resampling"],
        help=f"what scales images to their short side; default: {DEFAULTS['resampling']}",
    )
    images.add_argument(
        "--max-corrupt-fraction",
        type=_share,
        default=DEFAULTS["max_corrupt_fraction"],
        help="share of the images that may be undecodable; they are named and left out. Default: 0.001",
    )
    latents = parser.add_argument_group("latents")
    latents.add_argument(
        "--autoencoder",
        type=path_text,
        default=DEFAULTS["autoencoder"],
        help=f"name on the Hugging Face hub, or local folder; default: {DEFAULTS['autoencoder']}",
    )
    latents.add_argument("--output", type=to_path, required=True, help="folder to write, or to complete")
    latents.add_argument(
        "--dtype", choices=("float16", "float32"), default="float32", help="of the moments; default: float32"
    )
    latents.add_argument(
        "--mirror", action="store_true", help="encode the mirrored images too, for data.horizontal_flip; twice the size"
    )
    latents.add_argument("--batch-size", type=whole_from(1), default=32, help="images per pass; default: 32")
    latents.add_argument("--shard-size", type=whole_from(1), default=4096, help="images per file; default: 4096")
    return parser


def _share(text: str) -> float:
    share = number(text) if FLOAT.fullmatch(text) else -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return float(share)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    run_command(main)
