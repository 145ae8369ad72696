"""Measures that cannot be taken: images, references, extractors and settings that do not fit together."""

from __future__ import annotations

from pathlib import Path

import torch

import eval as eval_command
from pmf.evaluation.frechet import Gaussian
from pmf.evaluation.statistics_file import save_statistics
from pmf.generation.pictures import save_png
from tests.bad_input.cases import Case, each, write_file
from tests.launch import run_command

SMALL = "tests.evaluation.networks:create"


def write_images(folder: Path) -> None:
    """40 colour images of 12 x 12 pixels in ``folder``/images."""
    images = torch.randint(256, (40, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (folder / "images").mkdir()
    for index, image in enumerate(images):
        save_png(image, folder / "images" / f"{index:06d}.png")


def with_statistics(dimensions: int, **protocol: object):
    """Those images and ``statistics.npz``, of so many dimensions."""

    def write(folder: Path) -> None:
        write_images(folder)
        gaussian = Gaussian(torch.zeros(dimensions).double(), torch.eye(dimensions).double())
        save_statistics(folder / "statistics.npz", gaussian, 40, protocol)

    return write


MADE = ("--images", "{tmp}/images", "--extractor", SMALL, "--reference")
GENERATED = ("--checkpoint", "{run}", "--reference", "digits")

FID = {
    "statistics of other dimensions": Case(
        prepare=with_statistics(2048),
        arguments=(*MADE, "{tmp}/statistics.npz"),
        message="--reference {tmp}/statistics.npz: has 2048 dimensions and extractor "
        "tests.evaluation.networks:create has 16; give the --extractor that it was made with",
    ),
    "statistics of another extractor": Case(
        prepare=with_statistics(16, extractor={"name": "a.b:c", "sha256": "0123456789abcdef" * 4}),
        arguments=(*MADE, "{tmp}/statistics.npz"),
        message="--reference {tmp}/statistics.npz: was made with extractor a.b:c 0123456789abcdef, "
        "this one is tests.evaluation.networks:create ...",
    ),
    "KID from statistics": Case(
        prepare=with_statistics(16),
        arguments=(*MADE, "{tmp}/statistics.npz", "--kid"),
        message="--reference {tmp}/statistics.npz: holds statistics only; --kid and --precision-recall "
        "need the images themselves",
    ),
    "KID of few images": Case(
        prepare=write_images,
        arguments=(*MADE, "{tmp}/images", "--kid"),
        message="--kid draws subsets of 1000 images and one set has 40; give more images or leave it out",
    ),
    "no reference": Case(
        prepare=write_images,
        arguments=(*MADE, "{tmp}/nowhere"),
        message="{tmp}/nowhere: is neither digits, a config (.yaml), Parquet files nor a folder of images, "
        "and no statistics (.npz): there is no such file or folder",
    ),
    "reference of other images": Case(
        prepare=write_images,
        arguments=(*MADE, "digits"),
        message="--reference digits: its images have shape (1, 8, 8) (channels, height, width), the "
        "measured ones (3, 12, 12); give a reference of the same shape",
    ),
    "too few images": Case(
        prepare=with_statistics(16),
        arguments=(*MADE, "{tmp}/statistics.npz", "--num-images", "9"),
        message="9 images are too few to measure; give at least 10",
    ),
    "images to keep that are there": Case(
        prepare=with_statistics(16),
        arguments=(*MADE, "{tmp}/statistics.npz", "--keep-images", "x"),
        message="--keep-images keeps generated images; it goes with --checkpoint, not with --images",
    ),
    "no images to make": Case(
        arguments=(*GENERATED, "--num-images", "0"),
        message="argument --num-images: 0 is not a whole number from 1; eval.py fid --help shows what there is",
    ),
    "extractor of other images": Case(
        arguments=(*GENERATED, "--extractor", SMALL),
        message="extractor tests.evaluation.networks:create: fails on images of shape (1, 8, 8): ...",
    ),
    "folder without images": Case(
        prepare=write_file("images/notes.txt", b""),
        arguments=(*MADE, "digits"),
        message="{tmp}/images: holds no images (left out are files without the ending of an image: 1 (first "
        "notes.txt)); give a folder of image files, as eval.py sample writes",
    ),
}

SAMPLE = {
    "average that is not there": Case(
        arguments=("--ema", "77"),
        message="{run}/checkpoints/step_00000001: has no average '77'; choose one of: 0.05, 10, online",
    ),
    "label out of range": Case(arguments=("--labels", "3,10"), message="--labels 3,10: 10 is not in 0 ... 9"),
    "labels that are none": Case(
        arguments=("--labels", "a"),
        message="argument --labels: a: give classes separated by commas, all or blocks; "
        "eval.py sample --help shows what there is",
    ),
    "blocks of unequal length": Case(
        arguments=("--labels", "blocks", "--num-images", "15"),
        message="--labels blocks: --num-images is 15, not a multiple of the 10 classes; give 10 or 20",
    ),
    "noise of nobody's": Case(
        arguments=("--noise", "theirs"),
        message="command line: sampling.noise is 'theirs': input should be 'ours' or 'official'",
    ),
    "scale below 1": Case(
        arguments=("--omega", "0.5"),
        message="command line: sampling.omega is 0.5: input should be greater than or equal to 1",
    ),
    "interval upside down": Case(
        arguments=("--interval", "0.9", "0.1"),
        message="command line: sampling.interval is [0.9, 0.1]; it must be [t_min, t_max] with t_min < t_max",
    ),
}


@each(FID)
def test_fid(case, refused, tmp_path):
    output = tmp_path / "result.json"
    assert refused(eval_command.main, case, "fid", *case.arguments, "--output", str(output)) == case.message
    assert not output.exists()


@each(SAMPLE)
def test_sample(case, refused, tmp_path):
    output = tmp_path / "images"
    arguments = ("sample", "--checkpoint", "{run}", "--output", str(output), "--num-images", "4", *case.arguments)
    assert refused(eval_command.main, case, *arguments) == case.message
    assert not output.exists()


def test_a_sweep_into_a_folder_that_is_not_empty(refused, tmp_path):
    case = Case(
        prepare=write_file("sweep/sweep.csv", b"old"),
        arguments=("--omega", "1", "--output", "{tmp}/sweep"),
        message="--output {tmp}/sweep: is not empty; give a new folder",
    )
    assert refused(eval_command.main, case, "sweep", *GENERATED, *case.arguments) == case.message
    assert [path.read_bytes() for path in (tmp_path / "sweep").iterdir()] == [b"old"]


def test_a_sweep_into_a_file(refused, tmp_path):
    case = Case(
        prepare=write_file("sweep.csv", b"old"),
        arguments=("--omega", "1", "--output", "{tmp}/sweep.csv"),
        message="--output {tmp}/sweep.csv: is a file; give a new folder",
    )
    assert refused(eval_command.main, case, "sweep", *GENERATED, *case.arguments) == case.message
    assert (tmp_path / "sweep.csv").read_bytes() == b"old"


def test_training_with_a_reference_that_is_not_there(training_refused):
    case = Case(
        arguments=("evaluation.every_images=96", "evaluation.reference=nowhere.npz"),
        message="nowhere.npz: is neither digits, a config (.yaml), Parquet files nor a folder of images, "
        "and no statistics (.npz): there is no such file or folder",
    )
    assert training_refused(case) == case.message


def test_the_command_in_a_process_of_its_own(tmp_path):
    result = run_command("eval.py", "fid", "--images", str(tmp_path), "--reference", "digits")
    assert result.returncode == 2
    assert (
        result.stderr == f"error: {tmp_path}: holds no images; give a folder of image files, as eval.py sample writes\n"
    )
