"""What can be known to be wrong with the inputs of a command before torch is imported, which takes seconds."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.data.options import missing_folder, network_shape
from pmf.distributed.batching import accumulation_steps
from pmf.errors import CrossFieldError, UserError
from pmf.net.sizes import find_size
from pmf.optim.schedule import learning_rate


def require_inputs(config: Config, resume: str) -> None:
    """The model, data set, reference and checkpoint that a training run names are there, as far as names tell.

    So are batch and schedule checked, as far as the number of processes and the length of the run are known.

    Raises:
        UserError: one is not.
    """
    require_model(config)
    try:
        accumulation_steps(
            config.training.global_batch_size, config.training.micro_batch_size, int(os.environ.get("WORLD_SIZE", "1"))
        )
    except CrossFieldError as error:
        raise UserError(str(error)) from None
    if config.training.max_steps is not None:
        learning_rate(config.optimizer, 0, config.training.max_steps)
    evaluation = config.evaluation
    if problem := missing_folder(config.data):
        raise UserError(problem)
    if evaluation.every_images and evaluation.reference:
        require_reference(evaluation.reference)
        require_extractor("evaluation.extractor", evaluation.extractor)
        require_there("evaluation.extractor_weights", evaluation.extractor_weights)
    if resume not in ("auto", "never") and not os.path.exists(resume):
        raise UserError(f"--resume {resume}: there is no such folder; give auto, never, or a checkpoint folder")


def require_model(config: Config) -> None:
    """The table has the model, for images of this size.

    Raises:
        UserError: it has not.
    """
    try:
        _, side, _ = network_shape(config.data)
        find_size(config.model.name, side, config.data.image_size // side)
    except CrossFieldError as error:
        raise UserError(str(error)) from None


def require_reference(name: str) -> None:
    """What images are to be compared with is there, and a valid config if it is one.

    Raises:
        UserError: it is not.
    """
    if name.endswith((".yaml", ".yml")):
        load_config(name)
    elif name != "digits" and not os.path.exists(name) and not glob.has_magic(name):
        raise UserError(
            f"{name}: is neither digits, a config (.yaml), Parquet files nor a folder of images, and no statistics "
            "(.npz): there is no such file or folder"
        )


def require_extractor(option: str, name: str | None) -> None:
    """A feature network that is a file exists; the others are found when they are imported.

    Raises:
        UserError: it does not.
    """
    if name not in (None, "inception", "digits") and ":" not in name and not os.path.exists(name):
        raise UserError(
            f"{option} {name}: there is no such file; give inception, digits, package.module:callable or a "
            "TorchScript file"
        )


def require_there(option: str, path: str | Path | None) -> None:
    """What an option names exists, if it names anything.

    Raises:
        UserError: it does not.
    """
    if path is not None and not os.path.exists(path):
        raise UserError(f"{option} {path}: there is no such file or folder")


def require_free(option: str, output: Path, *suffixes: str) -> None:
    """A file can be written there that does not exist yet, and its name ends in one of the suffixes, if there are any.

    Raises:
        UserError: it exists, its folder does not, or its name ends otherwise.
    """
    if suffixes and output.suffix not in suffixes:
        raise UserError(f"{option} {output}: give a file name that ends in {' or '.join(suffixes)}")
    if output.exists():
        raise UserError(f"{option} {output}: exists already; remove it or choose another name")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{option} {output}: there is no folder {output.absolute().parent}; create it first")
