"""Weights as one file that makes images without this library: %(prog)s RUN --onnx model.onnx.

The file maps standard normal noise, a class, and the guidance scale and interval to bytes. It is compared with the
network before it gets its name. Needs uv sync --extra export; see docs/export.md.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pmf.commands import CommandParser, path_text, program, to_path, whole_from
from pmf.config.command_line import takes_config
from pmf.config.inputs import require_free, require_model, require_there
from pmf.config.yaml_file import load_config
from pmf.errors import UserError

if TYPE_CHECKING:
    from pmf.generator.model import Generator


def main() -> None:
    """Parse, load and write."""
    parser = CommandParser(
        prog=program("python -m pmf.export"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_weights_flags(parser)
    parser.add_argument("--onnx", type=to_path, metavar="FILE.onnx", help="for onnxruntime and others; must not exist")
    parser.add_argument("--pt2", type=to_path, metavar="FILE.pt2", help="for torch.export.load; must not exist")
    parser.add_argument("--num-steps", type=whole_from(1), help="network evaluations; default: the config's")
    arguments = parser.parse_args()
    if arguments.onnx is None and arguments.pt2 is None:
        raise UserError("nothing to write; give --onnx FILE.onnx, --pt2 FILE.pt2 or both")
    for option, path, suffix in (("--onnx", arguments.onnx, ".onnx"), ("--pt2", arguments.pt2, ".pt2")):
        if path is not None:
            require_free(option, path, suffix)
            require_free(option, path.with_name(f"{path.name}.data"))  # where large weights go
    require_weights(arguments)

    # Only now: importing torch's stack takes seconds.
    from pmf.export.formats import export_files

    model = open_weights(arguments, arguments.ema, device="cpu")
    for line in export_files(model, onnx=arguments.onnx, pt2=arguments.pt2, num_steps=arguments.num_steps):
        print(line)


def add_weights_flags(parser: argparse.ArgumentParser) -> None:
    """Which weights: of :func:`pmf.load`, as a command's arguments."""
    parser.add_argument(
        "checkpoint",
        type=to_path,
        metavar="RUN",
        help="run folder, checkpoint folder, .safetensors, or a name on the hub",
    )
    takes_config(parser.add_argument("--config", type=to_path, help="recipe of an official checkpoint, e.g. pmf_b_16"))
    parser.add_argument("--key", help="which set of weights of a PyTorch file that holds several")
    parser.add_argument("--ema", help='which average, e.g. 2000, or "online"; default: the config\'s')
    parser.add_argument(
        "--autoencoder",
        type=path_text,
        metavar="NAME_OR_FOLDER",
        help="of latents, what decodes them; default: the config's",
    )


def open_weights(arguments: argparse.Namespace, ema: str | None, device: str | None = None) -> Generator:
    """The weights that the arguments of :func:`add_weights_flags` name, but for the average.

    Raises:
        UserError: see :func:`pmf.load`.
    """
    from pmf.generator.model import Generator

    return Generator.from_pretrained(
        arguments.checkpoint,
        ema=ema,
        config=arguments.config,
        key=arguments.key,
        autoencoder=arguments.autoencoder,
        device=device,
    )


def require_weights(arguments: argparse.Namespace) -> None:
    """What the arguments of :func:`add_weights_flags` name is there, as far as names tell.

    Raises:
        UserError: it is not.
    """
    if arguments.config:
        require_there("RUN", arguments.checkpoint)
        require_model(load_config(arguments.config))
