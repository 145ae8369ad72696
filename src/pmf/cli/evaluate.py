"""Turn a checkpoint into images, and images into numbers: what ``eval.py VERB`` and ``pmf VERB`` do.

Run alone, under ``accelerate launch`` and under ``torchrun``; image i is a function of the seed and i alone.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pmf.cli.entry import COMMANDS
from pmf.commands import CommandParser, path_text, program, to_path, whole_from
from pmf.config.command_line import ConfigParser, takes_config
from pmf.config.inputs import require_extractor, require_model, require_reference, require_there
from pmf.config.sampling_flags import check_sampling, combinations, given_options
from pmf.config.sampling_options import Use, options_for
from pmf.config.sections import sampling_section
from pmf.config.yaml_file import load_config
from pmf.data.options import DataConfig
from pmf.errors import UserError
from pmf.generation.sampling_request import add_generation_flags, generation_request

DESCRIPTION = """Turn a checkpoint into images, and images into numbers.

    %(prog)s sample --checkpoint runs/digits --output samples --num-images 100
    %(prog)s fid --checkpoint runs/digits --reference digits
    %(prog)s sweep --checkpoint runs/digits --reference digits --omega 1 1.5 2 --output sweep
    %(prog)s reference --config pmf_b_16 --output imagenet_256.npz

Runs alone, under ``accelerate launch`` and under ``torchrun``; image i is a function of the seed and i alone.
"""
CHECKPOINT = (
    "run folder, checkpoint folder or .safetensors; with --config also an official .pt or JAX checkpoint, or another "
    "file with the tensors of such a network"
)
REFERENCE = (
    "statistics (.npz: ours, ADM's, JiT's or pMF's), digits, a config (.yaml) for its data, or images: a folder "
    "of them, of Parquet files or of class folders, or an .npz (arr_0)"
)
NUM_IMAGES = "50000 (2000 against the digits)"


def main() -> None:
    """The script ``eval.py``: call the verb that its first argument names."""
    given, name = sys.argv[1:], program("eval.py")
    if given and given[0] in VERBS:
        call(given[0], f"{name} {given[0]}", given[1:])
        return
    parser = CommandParser(prog=name, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in VERBS:
        verbs.add_parser(verb, help=COMMANDS[verb].told)
    parser.parse_args(given[:1])


def sample() -> None:
    """The command ``pmf sample``."""
    call("sample", "pmf sample", sys.argv[1:])


def fid() -> None:
    """The command ``pmf fid``."""
    call("fid", "pmf fid", sys.argv[1:])


def sweep() -> None:
    """The command ``pmf sweep``."""
    call("sweep", "pmf sweep", sys.argv[1:])


def reference() -> None:
    """The command ``pmf reference``."""
    call("reference", "pmf reference", sys.argv[1:])


def call(verb: str, name: str, given: Sequence[str]) -> None:
    """Parse and call a verb.

    Args:
        name: what its texts call the command.
        given: its arguments.
    """
    row, told = VERBS[verb], COMMANDS[verb].told
    parser = row.parser(prog=name, description=f"{told[0].upper()}{told[1:]}.")
    row.add(parser)
    arguments = parser.parse_intermixed_args(given)
    require_files(arguments, recipe=verb != "reference")
    row.run(arguments)


def add_sample(parser: argparse.ArgumentParser) -> None:
    """The verb ``sample``."""
    parser.add_argument("--checkpoint", type=to_path, required=True, help=CHECKPOINT)
    parser.add_argument("--output", type=to_path, required=True, help="folder for 000000.png ... and labels.csv")
    parser.add_argument("--num-images", type=whole_from(1), required=True)
    add_generation_flags(parser)


def add_fid(parser: argparse.ArgumentParser) -> None:
    """The verb ``fid``."""
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--checkpoint", type=to_path, help=CHECKPOINT)
    subject.add_argument("--images", type=to_path, metavar="DIR", help="folder of images, or .npz (arr_0), as they are")
    parser.add_argument("--reference", type=path_text, required=True, help=REFERENCE)
    parser.add_argument(
        "--num-images", type=whole_from(1), help="default: of a folder all, of a checkpoint " + NUM_IMAGES
    )
    parser.add_argument("--keep-images", type=to_path, metavar="DIR", help="keep the generated images as PNGs")
    parser.add_argument("--kid", action="store_true", help="also KID; the reference must be images")
    parser.add_argument("--precision-recall", action="store_true", help="also both; the reference must be images")
    parser.add_argument("--output", type=to_path, help="JSON; default: a new file in RUN/evaluation, or here")
    add_extractor(parser)
    add_generation_flags(parser)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """The verb ``sweep``."""
    parser.add_argument("--checkpoint", type=to_path, required=True, help=CHECKPOINT)
    parser.add_argument("--reference", type=path_text, required=True, help=REFERENCE)
    parser.add_argument("--num-images", type=whole_from(1), help="for each point; default: " + NUM_IMAGES)
    parser.add_argument("--output", type=to_path, required=True, metavar="DIR", help="new folder: table, plot, JSONs")
    add_generation_flags(parser, several=True)
    add_extractor(parser)


def add_reference(parser: ConfigParser) -> None:
    """The verb ``reference``."""
    data = parser.add_mutually_exclusive_group(required=True)
    takes_config(data.add_argument("--config", type=to_path, help="measure this config's data set"))
    data.add_argument(
        "--data",
        type=path_text,
        help="or digits, a folder of Parquet files, of class folders or of images, an .npz",
    )
    parser.add_argument(
        "--image-size", type=whole_from(1), default=256, help="side that images of --data are cropped to"
    )
    parser.add_argument("--output", type=to_path, required=True, metavar="STATS.npz")
    add_extractor(parser)
    parser.add_overrides("of --config, e.g. data.split=validation")


def add_extractor(parser: argparse.ArgumentParser) -> None:
    """Which feature network."""
    parser.add_argument(
        "--extractor",
        type=path_text,
        help="inception, digits, package.module:callable or a TorchScript file; default: digits for 8x8 grey images, "
        "else inception",
    )
    parser.add_argument(
        "--extractor-weights", type=to_path, help="Inception's weights; default: in $TORCH_HOME, else downloaded"
    )


def require_files(arguments: argparse.Namespace, *, recipe: bool) -> None:
    """What the arguments name is there, as far as names tell, and configs are valid.

    Args:
        recipe: ``--config`` is that of a checkpoint, whose model has to be in the table.

    Raises:
        UserError: it is not, or one is not.
    """
    for option in ("checkpoint", "images", "data", "extractor_weights"):
        path = vars(arguments).get(option)
        if path != "digits" and not (option == "data" and path and glob.has_magic(path)):
            require_there("--" + option.replace("_", "-"), path)
    if vars(arguments).get("reference"):
        require_reference(arguments.reference)
    require_extractor("--extractor", vars(arguments).get("extractor"))
    if arguments.config and recipe:
        require_model(load_config(arguments.config))


# Below, imports stand in the functions: torch's stack takes seconds, and wrong arguments should not.


def run_sample(arguments: argparse.Namespace) -> None:
    """Write PNGs."""
    request = generation_request(arguments, arguments.num_images, given_options(arguments))

    from pmf.generation.command import sample_folder

    sample_folder(request, arguments.output)


def run_fid(arguments: argparse.Namespace) -> None:
    """Measure images against a reference."""
    if arguments.images and arguments.keep_images:
        raise UserError("--keep-images keeps generated images; it goes with --checkpoint, not with --images")
    request = generation_request(arguments, default_number(arguments), given_options(arguments))

    from pmf.evaluation.command import FidelityRequest, report_fidelity

    report_fidelity(
        FidelityRequest(
            sampling=request if arguments.checkpoint else None,
            images=arguments.images,
            num_images=arguments.num_images,
            reference=arguments.reference,
            extractor=arguments.extractor,
            extractor_weights=arguments.extractor_weights,
            keep_images=arguments.keep_images,
            kid=arguments.kid,
            precision_recall=arguments.precision_recall,
            output=arguments.output,
        )
    )


def run_sweep(arguments: argparse.Namespace) -> None:
    """Measure a grid."""
    given = given_options(arguments)
    averages = given.pop("ema", [None])
    shared = {name: given.pop(name) for name in options_for(sampling_section(), Use.BATCHES) if name in given}
    grid = combinations(given)
    for overrides in grid:
        check_sampling(shared | overrides)

    from pmf.evaluation.sweep import SweepRequest, run_sweep

    run_sweep(
        SweepRequest(
            sampling=generation_request(arguments, default_number(arguments), shared),
            averages=averages,
            grid=grid,
            reference=arguments.reference,
            extractor=arguments.extractor,
            extractor_weights=arguments.extractor_weights,
            output=arguments.output,
        )
    )


def default_number(arguments: argparse.Namespace) -> int:
    """``--num-images``, or what is usual against this reference."""
    if arguments.num_images is not None:
        return int(arguments.num_images)
    return 2_000 if arguments.reference == "digits" else 50_000


def run_reference(arguments: argparse.Namespace) -> None:
    """Measure a reference."""
    if arguments.config:
        data = load_config(arguments.config, arguments.overrides).data
    elif arguments.overrides:
        raise UserError(f"{arguments.overrides[0]}: overrides are for --config; --data takes none")
    else:
        data = DataConfig(image_size=arguments.image_size)

    from pmf.evaluation.command import write_reference

    write_reference(
        data,
        name=arguments.data,
        extractor=arguments.extractor,
        weights=arguments.extractor_weights,
        output=arguments.output,
    )


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A row of the table.

    Attributes:
        add: gives its arguments to a parser.
        run: does it.
        parser: what reads its arguments.
    """

    add: Callable[[Any], None]
    run: Callable[[argparse.Namespace], None]
    parser: type[CommandParser] = CommandParser


VERBS = {
    "sample": Verb(add=add_sample, run=run_sample),
    "fid": Verb(add=add_fid, run=run_fid),
    "sweep": Verb(add=add_sweep, run=run_sweep),
    "reference": Verb(add=add_reference, run=run_reference, parser=ConfigParser),
}
