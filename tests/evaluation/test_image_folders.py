"""``eval.py fid`` and ``reference`` on folders as people have them: all images are measured, the rest is counted."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmf.data.options import DataConfig
from pmf.distributed.world import ALONE
from pmf.errors import UserError
from pmf.evaluation.subjects import named_subject

SMALL = "tests.evaluation.networks:create"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict]:
    """A verb of eval.py in this process; returns what it wrote."""

    def run(verb: str, *arguments: object) -> dict:
        output = tmp_path / ("result.json" if verb == "fid" else "result.npz")
        named = ["--extractor", SMALL, "--output", str(output)]
        monkeypatch.setattr("sys.argv", ["eval.py", verb, *map(str, arguments), *named])
        importlib.import_module("eval").main()
        return json.loads(output.read_text()) if verb == "fid" else dict(np.load(output))

    return run


def write_images(folder: Path, *names: str, side: int = 12) -> None:
    """Noise, another for each name."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        seed = [*name.encode()]
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(file, Image.registered_extensions()[file.suffix.lower()])


def numbered(count: int, ending: str) -> list[str]:
    return [f"{number:06d}.{ending}" for number in range(count)]


@pytest.mark.parametrize(
    ("images", "endings"),
    [
        (numbered(30, "jpg"), None),
        (numbered(30, "PNG"), None),
        (numbered(30, "JPEG"), None),
        ([*numbered(20, "jpg"), *numbered(12, "png")], "20 .jpg, 12 .png"),
        ([*numbered(20, "PNG"), *numbered(3, "Jpeg")], "3 .jpeg, 20 .png"),
    ],
)
def test_all_images_of_a_folder_are_measured(images: list[str], endings: str | None, call, tmp_path, capsys) -> None:
    folder = tmp_path / "images"
    write_images(folder, *images)
    write_images(tmp_path / "other", *numbered(20, "png"))
    record = call("fid", "--images", folder, "--reference", tmp_path / "other")
    assert record["num_images"] == len(images)
    wanted = [f"{folder}: its images are of several formats, which features can tell apart: {endings}"]
    assert record["warnings"] == (wanted if endings else [])
    as_reference = call("fid", "--images", tmp_path / "other", "--reference", folder)
    assert as_reference["reference"]["num_images"] == len(images)
    assert as_reference["fid"] == pytest.approx(record["fid"], rel=1e-9)  # the same sums, the other way round
    assert as_reference["warnings"] == record["warnings"]
    for warning in record["warnings"]:
        assert capsys.readouterr().err.count(f"warning: {warning}\n") == 2


def test_what_is_left_out_is_in_the_record_and_in_the_statistics(call, tmp_path, capsys) -> None:
    folder = tmp_path / "images"
    write_images(folder, *numbered(20, "jpg"), "inner/0.png")
    clean = call("fid", "--images", folder, "--reference", folder)
    (folder / "._000000.jpg").write_bytes(b"\0")
    (folder / "000099.avif").touch()
    (folder / "000098.jpg").symlink_to("/nonexistent")
    warning = (
        f"{folder}: left out are files without the ending of an image: 1 (first 000099.avif), folders: 1 (first inner)"
        ", hidden names: 1 (first ._000000.jpg), names of no file, as broken links are: 1 (first 000098.jpg)"
    )
    record = call("fid", "--images", folder, "--reference", folder)
    assert (record["num_images"], record["fid"]) == (20, clean["fid"])
    assert record["warnings"] == [warning, warning]  # of the measured set and of the reference
    statistics = call("reference", "--data", folder)
    assert json.loads(str(statistics["protocol"]))["warnings"] == [warning]
    capsys.readouterr()
    record = call("fid", "--images", folder, "--reference", tmp_path / "result.npz")
    assert record["warnings"] == [warning, warning]
    assert capsys.readouterr().err.count(f"warning: {warning}\n") == 2


def reference_of(path: Path, **fields: object) -> tuple[int, str, str]:
    """Number of images, how they are prepared, and the warnings in one."""
    subject = named_subject(str(path), DataConfig.model_validate({"image_size": 8, **fields}), ALONE)
    return subject.num_images, str(subject.origin["preparation"]), " ".join(subject.warnings)


def test_strays_hide_neither_class_folders_nor_a_flat_folder(tmp_path: Path) -> None:
    classes = tmp_path / "classes"
    write_images(classes, *(f"{name}/{number}.jpg" for name in "ab" for number in range(6)))
    assert reference_of(classes) == (12, "ADM centre crop", "")
    write_images(classes, "stray.png", "other.JPG")
    number, preparation, told = reference_of(classes)
    assert (number, preparation) == (12, "ADM centre crop")
    assert told == f"{classes}: left out are images beside the class folders: 2 (first other.JPG)"
    (classes / "._0.parquet").touch()
    (classes / "meta.parquet").touch()
    assert reference_of(classes)[:2] == (12, "ADM centre crop")

    flat = tmp_path / "flat"
    write_images(flat, *numbered(12, "jpg"), "grids/0.png", "grids/1.png")
    assert reference_of(flat)[:2] == (12, "as they are")
    assert "folders: 1 (first grids)" in reference_of(flat)[2]

    split = tmp_path / "split"
    write_images(split, *(f"train/{name}/{number}.png" for name in "ab" for number in range(6)), "val/a/0.png", "x.png")
    number, preparation, told = reference_of(split)
    assert (number, preparation) == (12, "ADM centre crop")
    assert "images beside the folder of the split: 1 (first x.png)" in told
    with pytest.raises(UserError, match=r"its folders train, val are named like splits and data\.split is 'test'"):
        reference_of(split, split="test")

    flat_split = tmp_path / "flat_split"
    write_images(flat_split, *(f"train/{number}.jpg" for number in range(5)), "val/0.jpg")
    assert reference_of(flat_split)[:2] == (5, "as they are")


def test_an_npz_of_images_equals_the_folder_of_them(call, tmp_path: Path) -> None:
    write_images(tmp_path / "a", *numbered(30, "png"))
    write_images(tmp_path / "b", *numbered(20, "png"))
    pixels = {}
    for name in "ab":
        files = sorted((tmp_path / name).iterdir())
        pixels[name] = np.stack([np.asarray(Image.open(file)) for file in files])
        np.savez(tmp_path / f"{name}.npz", pixels[name])
    options = ["--precision-recall"]
    of_folders = call("fid", "--images", tmp_path / "a", "--reference", tmp_path / "b", *options)
    of_arrays = call("fid", "--images", tmp_path / "a.npz", "--reference", tmp_path / "b.npz", *options)
    for key in ("fid", "inception_score", "precision_recall", "num_images", "image_shape"):
        assert of_arrays[key] == of_folders[key], key
    assert of_arrays["images"] == {
        "images": f"{tmp_path}/a.npz",
        "array": "arr_0",
        "preparation": "as they are",
    }
    assert (
        call("fid", "--images", tmp_path / "a.npz", "--reference", tmp_path / "b", "--num-images", 12)["num_images"]
        == 12
    )

    # As ADM publishes them: images, and the statistics of a larger set.
    statistics = call("reference", "--data", tmp_path / "a.npz")
    both = tmp_path / "both.npz"
    np.savez(both, arr_0=pixels["b"], mu=statistics["mu"], sigma=statistics["sigma"])
    record = call("fid", "--images", tmp_path / "a.npz", "--reference", both, *options)
    assert abs(record["fid"]) < 1e-9  # of the set with itself
    assert record["precision_recall"] == of_folders["precision_recall"]
    assert record["reference"]["layout"] == "adm"
    assert record["reference"]["features_of"]["num_images"] == 20
    assert call("fid", "--images", both, "--reference", tmp_path / "b")["num_images"] == 20


def test_images_and_references_that_do_not_fit_are_one_line(call, tmp_path: Path) -> None:
    write_images(tmp_path / "good", *numbered(20, "png"))
    write_images(tmp_path / "bad", *numbered(20, "jpg"))
    (tmp_path / "bad" / "000007.jpg").write_bytes((tmp_path / "bad" / "000007.jpg").read_bytes()[:300])
    write_images(tmp_path / "classes", "a/0.png", "b/0.png")
    np.savez(tmp_path / "floats.npz", np.zeros((20, 12, 12, 3)))
    np.savez(tmp_path / "narrow.npz", np.zeros((20, 12, 8, 3), np.uint8))
    (tmp_path / "text.npz").write_text("no zip")
    good = tmp_path / "good"
    for images, reference, message in (
        (tmp_path / "bad", good, "bad/000007.jpg: cannot be decoded ("),
        (good, tmp_path / "bad", "bad/000007.jpg: cannot be decoded ("),
        (tmp_path / "classes", good, "classes: holds no images (left out are folders: 2 (first a)); give a folder of"),
        (tmp_path / "floats.npz", good, "floats.npz: arr_0 has shape (20, 12, 12, 3) and type float64"),
        (good, tmp_path / "floats.npz", "floats.npz: arr_0 has shape (20, 12, 12, 3) and type float64"),
        (good, tmp_path / "narrow.npz", "narrow.npz: its images have shape (3, 12, 8)"),
        (tmp_path / "text.npz", good, "text.npz: is not an intact .npz file"),
        (good, tmp_path / "text.npz", "text.npz: is damaged, or is not an .npz file of plain arrays"),
        (tmp_path / "nowhere.npz", good, "nowhere.npz: there is no such file or folder"),
    ):
        with pytest.raises(UserError) as error:
            call("fid", "--images", images, "--reference", reference)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
