"""Turn a checkpoint into images, and images into numbers.

    python eval.py sample --checkpoint runs/digits --output samples --num-images 100
    python eval.py fid --checkpoint runs/digits --reference digits
    python eval.py sweep --checkpoint runs/digits --reference digits --omega 1 1.5 2 --output sweep
    python eval.py reference --config configs/pmf_b_16.yaml --output imagenet_256.npz

Runs alone, under ``accelerate launch`` and under ``torchrun``; image i is a function of the seed and i alone.
"""

from __future__ import annotations

import argparse
import glob
import itertools
from typing import TYPE_CHECKING, Any

from pmf.commands import CommandParser, path_text, run_command, to_path, whole_from
from pmf.config.inputs import require_extractor, require_model, require_reference, require_there
from pmf.config.yaml_file import config_from_plain, load_config
from pmf.data.options import DataConfig
from pmf.errors import UserError

if TYPE_CHECKING:
    from pmf.generation.command import SamplingRequest

CHECKPOINT = (
    "run folder, checkpoint folder or .safetensors; with --config also an official .pt or JAX checkpoint, or another "
    "file with the tensors of such a network"
)
KEY = "which set of weights of a PyTorch file that holds several, e.g. ema or state.model"
REFERENCE = (
    "statistics (.npz: ours, ADM's, JiT's or pMF's), digits, a config (.yaml) for its data, or images: a folder "
    "of them, of Parquet files or of class folders, or an .npz (arr_0)"
)
NUM_IMAGES = "50000 (2000 against the digits)"


def main() -> None:
    """Parse and call the verb."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    add_sample(verbs.add_parser("sample", help="write a folder of PNGs"))
    add_fid(verbs.add_parser("fid", help="FID and Inception score of a checkpoint or of a folder of images"))
    add_sweep(verbs.add_parser("sweep", help="FID over a grid of guidance scales, intervals, averages and steps"))
    add_reference(verbs.add_parser("reference", help="write the statistics of a data set, for fid --reference"))
    arguments = parser.parse_args()
    require_files(arguments)
    arguments.call(arguments)


def add_sample(parser: argparse.ArgumentParser) -> None:
    """The verb ``sample``."""
    parser.add_argument("--checkpoint", type=to_path, required=True, help=CHECKPOINT)
    parser.add_argument("--output", type=to_path, required=True, help="folder for 000000.png ... and labels.csv")
    parser.add_argument("--num-images", type=whole_from(1), required=True)
    add_sampling(parser)
    parser.set_defaults(call=sample)


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
    add_sampling(parser)
    parser.set_defaults(call=fid)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """The verb ``sweep``."""
    parser.add_argument("--checkpoint", type=to_path, required=True, help=CHECKPOINT)
    parser.add_argument("--config", type=to_path, help="recipe that an official checkpoint was trained with")
    parser.add_argument("--key", help=KEY)
    parser.add_argument("--reference", type=path_text, required=True, help=REFERENCE)
    parser.add_argument("--num-images", type=whole_from(1), help="for each point; default: " + NUM_IMAGES)
    parser.add_argument("--omega", type=float, nargs="+", required=True, help="guidance scales")
    parser.add_argument(
        "--interval",
        type=float,
        nargs=2,
        action="append",
        metavar=("T_MIN", "T_MAX"),
        help="guidance interval; repeat for several; default: the config's",
    )
    parser.add_argument("--ema", nargs="+", help='averages, or "online"; default: the config\'s')
    parser.add_argument("--num-steps", type=int, nargs="+", help="network evaluations; default: the config's")
    parser.add_argument("--output", type=to_path, required=True, metavar="DIR", help="new folder: table, plot, JSONs")
    parser.add_argument(
        "--labels", type=class_list, default="all", help="comma-separated classes to cycle through, or all"
    )
    parser.add_argument("--seed", type=whole_from(0), default=0)
    parser.add_argument("--batch-size", type=int, help="images per forward pass; default: the config's")
    add_extractor(parser)
    parser.set_defaults(call=sweep)


def add_reference(parser: argparse.ArgumentParser) -> None:
    """The verb ``reference``."""
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--config", type=to_path, help="measure this config's data set")
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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of --config, e.g. data.split=validation")
    parser.set_defaults(call=reference)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint's images are generated."""
    parser.add_argument(
        "--config",
        type=to_path,
        help="recipe that an official checkpoint was trained with, e.g. configs/pmf_b_16.yaml",
    )
    parser.add_argument("--key", help=KEY)
    parser.add_argument("--num-steps", type=int, help="network evaluations per image; default: the config's")
    parser.add_argument("--omega", type=float, help="guidance scale; default: the config's")
    parser.add_argument("--interval", type=float, nargs=2, metavar=("T_MIN", "T_MAX"), help="guidance interval")
    parser.add_argument("--ema", help='which average, e.g. 2000, or "online"; default: the config\'s')
    parser.add_argument(
        "--labels", type=class_list, default="all", help="comma-separated classes to cycle through, or all"
    )
    parser.add_argument("--seed", type=whole_from(0), default=0)
    parser.add_argument("--batch-size", type=int, help="images per forward pass; default: the config's")


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


def class_list(text: str) -> str:
    """``all``, or classes with commas between; which there are is known with the checkpoint."""
    if text != "all" and not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: give classes separated by commas, or all")
    return text


def require_files(arguments: argparse.Namespace) -> None:
    """What the arguments name is there, as far as names tell, and configs are valid.

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
    if arguments.config and arguments.verb != "reference":
        require_model(load_config(arguments.config))


def check_sampling(**values: Any) -> None:
    """Values of the config's sampling section; None keeps the config's.

    Raises:
        UserError: one cannot be.
    """
    given = {key: value for key, value in values.items() if value is not None}
    # A whole config, because that is what is checked; its other values do not matter.
    config_from_plain({"data": {"kind": "synthetic"}, "training": {"max_steps": 1}, "sampling": given}, "command line")


def sampling_request(arguments: argparse.Namespace, num_images: int) -> SamplingRequest:
    """The arguments of :func:`add_sampling` and the checkpoint."""
    from pmf.generation.command import SamplingRequest

    return SamplingRequest(
        checkpoint=arguments.checkpoint,
        recipe=arguments.config,
        num_images=num_images,
        labels=arguments.labels,
        seed=arguments.seed,
        ema=arguments.ema,
        overrides=sampling_overrides(arguments),
        key=arguments.key,
    )


def sampling_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Values for the config's sampling section; None keeps the config's."""
    return {name: getattr(arguments, name) for name in ("num_steps", "omega", "interval", "batch_size")}


# Below, imports stand in the functions: torch's stack takes seconds, and wrong arguments should not.


def sample(arguments: argparse.Namespace) -> None:
    """Write PNGs."""
    check_sampling(**sampling_overrides(arguments))

    from pmf.generation.command import sample_folder

    sample_folder(sampling_request(arguments, arguments.num_images), arguments.output)


def fid(arguments: argparse.Namespace) -> None:
    """Measure images against a reference."""
    if arguments.images and arguments.keep_images:
        raise UserError("--keep-images keeps generated images; it goes with --checkpoint, not with --images")
    check_sampling(**sampling_overrides(arguments))

    from pmf.evaluation.command import FidelityRequest, report_fidelity

    request = FidelityRequest(
        sampling=sampling_request(arguments, default_number(arguments)) if arguments.checkpoint else None,
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
    report_fidelity(request)


def sweep(arguments: argparse.Namespace) -> None:
    """Measure a grid."""
    intervals, num_steps = arguments.interval or [None], arguments.num_steps or [None]
    for omega, interval, steps in itertools.product(arguments.omega, intervals, num_steps):
        check_sampling(omega=omega, interval=interval, num_steps=steps, batch_size=arguments.batch_size)

    from pmf.evaluation.sweep import SweepRequest, run_sweep
    from pmf.generation.command import SamplingRequest

    shared = SamplingRequest(
        checkpoint=arguments.checkpoint,
        recipe=arguments.config,
        num_images=default_number(arguments),
        labels=arguments.labels,
        seed=arguments.seed,
        ema=None,
        overrides={"batch_size": arguments.batch_size},
        key=arguments.key,
    )
    run_sweep(
        SweepRequest(
            sampling=shared,
            omegas=arguments.omega,
            intervals=intervals,
            emas=arguments.ema or [None],
            num_steps=num_steps,
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


def reference(arguments: argparse.Namespace) -> None:
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


if __name__ == "__main__":
    run_command(main)
