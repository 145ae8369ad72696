"""Official checkpoints to our safetensors, and back: %(prog)s import|export --help.

Reads and writes the PyTorch files (.pt, .pth) and the JAX checkpoints of pMF, iMF and MeanFlow, and reads FD-Loss's of
the first two; JAX needs uv sync --extra jax. Every tensor is accounted for by name and shape; what does not fit is
refused in one line. See docs/checkpoints.md.
"""

from __future__ import annotations

import argparse

from pmf.commands import CommandParser, path_text, program, run_command, to_path
from pmf.config.command_line import takes_config
from pmf.config.inputs import require_free, require_model, require_there
from pmf.config.yaml_file import load_config
from pmf.files import writing

LAYOUTS = ("pytorch", "jax")


def main() -> None:
    """Parse and call the verb."""
    parser = CommandParser(
        prog=program("python -m pmf.convert"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    into = verbs.add_parser("import", help="official checkpoint to one .safetensors that eval.py sample reads")
    into.add_argument(
        "--checkpoint",
        type=to_path,
        required=True,
        help="PyTorch or safetensors file, or JAX checkpoint (unzipped folder)",
    )
    takes_config(
        into.add_argument("--config", type=path_text, required=True, help="recipe of the model, e.g. pmf_b_16")
    )
    into.add_argument("--ema", help='JAX only: which average, e.g. 1000 or 0.9999, or "online"; default: the recipe\'s')
    into.add_argument(
        "--key", help="which set of weights of a PyTorch file that holds several, e.g. ema or state.model"
    )
    into.add_argument("--allow-pickle", action="store_true", help="load a .pt that holds more than tensors: runs code")
    out = verbs.add_parser("export", help="weights of a run to an official layout")
    out.add_argument("--checkpoint", type=to_path, required=True, help="run folder, checkpoint folder or .safetensors")
    out.add_argument("--ema", help='which average, e.g. 2000, or "online"; default: the config\'s')
    out.add_argument("--inference", action="store_true", help="leave out the v head, as the released files do")
    out.add_argument("--layout", choices=LAYOUTS, default="pytorch", help="default: pytorch")
    into.add_argument("--output", type=to_path, required=True, help=".safetensors file to write; must not exist")
    out.add_argument("--output", type=to_path, required=True, help=".pt or .pth (JAX: folder) to write; must not exist")
    arguments = parser.parse_args()
    require_there("--checkpoint", arguments.checkpoint)
    if arguments.verb == "import":
        _import(arguments)
    else:
        _export(arguments)


def _import(arguments: argparse.Namespace) -> None:
    require_free("--output", arguments.output, ".safetensors")
    config = load_config(arguments.config)
    require_model(config)

    # Only now: importing torch's stack takes seconds.
    from pmf.checkpoint.official.layouts import load_official
    from pmf.checkpoint.saved_weights import save_weights
    from pmf.net.sizes import find_architecture

    saved = load_official(
        arguments.checkpoint, config, arguments.ema, key=arguments.key, allow_pickle=arguments.allow_pickle
    )
    with writing(f"--output {arguments.output}"):
        save_weights(arguments.output, saved.weights, saved.config)
    architecture = find_architecture(config.model.name)
    complete = any(map(architecture.is_training_only, saved.weights))
    head = f", {'with' if complete else 'without'} the v head" if architecture.training_only else ""
    print(
        f"{arguments.output}: {sum(tensor.numel() for tensor in saved.weights.values()):,} weights of "
        f"{config.model.name} in {len(saved.weights)} tensors{head}"
    )


def _export(arguments: argparse.Namespace) -> None:
    require_free("--output", arguments.output, *(() if arguments.layout == "jax" else (".pt", ".pth")))

    from pmf.checkpoint.official.exports import EXPORTS
    from pmf.checkpoint.saved_weights import load_weights

    saved = load_weights(arguments.checkpoint, arguments.ema)
    with writing(f"--output {arguments.output}"):
        EXPORTS[arguments.layout](arguments.output, saved, inference=arguments.inference)
    print(f"{arguments.output}: {saved.config.model.name} from {saved.source}")


if __name__ == "__main__":
    run_command(main)
