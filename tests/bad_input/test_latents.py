"""Latents that cannot be read or decoded: one line that says what was found, and what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import eval as eval_command
import train as train_command
from pmf.data.latent_shards import INDEX, REQUEST
from pmf.data.source import create_source, require_first_images
from pmf.errors import UserError
from tests.bad_input.cases import MakesFolder, flip_a_bit
from tests.latents import latent_config, write_autoencoder, write_latent_weights, write_official
from tests.launch import Script, started

AGAIN = "copy it again, or remove it and start the same python -m pmf.data.encode again"
SHARD = "latents-00002.safetensors"


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def other_tensors(folder: Path) -> None:
    """A shard of another encoding, as long as the one that it takes the place of."""
    tensors = load_file(folder / SHARD)
    shape = (12, 16, 4, 4)
    save_file({**tensors, "moments": torch.zeros(shape), "mirrored": torch.zeros(shape)}, folder / SHARD)
    change_index(folder, lambda index: index["shards"][2].update(bytes=(folder / SHARD).stat().st_size))


def cut_header(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(b"\xff" * 8 + content[8:])


# Name: what is done to a copy of the folder, options, the line; {tmp} is the folder.
SHARDS = {
    "no folder": (
        shutil.rmtree,
        {},
        "{tmp}: data.path does not exist; give the folder that python -m pmf.data.encode wrote",
    ),
    "another size": (
        None,
        {"image_size": 64},
        "{tmp}: was encoded from images of 32 pixels and data.image_size is 64; correct it, or encode again",
    ),
    "other classes": (None, {"num_classes": 10}, "{tmp}: has 4 classes and data.num_classes is 10; correct it"),
    "no multiple": (None, {"image_size": 36}, "data.image_size is 36; data.kind latents needs a multiple of 8"),
    "grey": (None, {"channels": 1}, "data.channels is 1; data.kind latents needs data.channels: 3"),
    "not mirrored": (
        lambda folder: change_index(folder, lambda index: index.update(mirrored=False)),
        {"horizontal_flip": True},
        "{tmp}: holds no moments of mirrored images, which data.horizontal_flip needs; encode with --mirror, or set it "
        "to false",
    ),
    "interrupted": (
        lambda folder: (folder / INDEX).unlink(),
        {},
        f"{{tmp}}: has no {INDEX} yet, so encoding was interrupted; start the same python -m pmf.data.encode again",
    ),
    "no index, no request": (
        lambda folder: [(folder / name).unlink() for name in (INDEX, REQUEST)],
        {},
        f"{{tmp}}: holds neither {INDEX}, which python -m pmf.data.encode writes, nor official latents (00000000.pt, "
        "...); correct data.path",
    ),
    "damaged index": (
        lambda folder: (folder / INDEX).write_text("{"),
        {},
        f"{{tmp}}/{INDEX}: is not valid JSON; {AGAIN}",
    ),
    "another JSON": (
        lambda folder: (folder / INDEX).write_text("{}"),
        {},
        f"{{tmp}}/{INDEX}: is no index of latents; {AGAIN}",
    ),
    "an autoencoder that is none": (
        lambda folder: change_index(folder, lambda index: index.update(autoencoder="a")),
        {},
        f"{{tmp}}/{INDEX}: is no index of latents; {AGAIN}",
    ),
    "labels that are none": (
        lambda folder: change_index(folder, lambda index: index["shards"][0].update(labels=["cat"] * 24)),
        {},
        f"{{tmp}}/{INDEX}: is no index of latents; {AGAIN}",
    ),
    "too few labels": (
        lambda folder: change_index(folder, lambda index: index["shards"][0].update(labels=[1])),
        {},
        f"{{tmp}}/{INDEX}: its shards hold other than 200 images; {AGAIN}",
    ),
    "no images": (
        lambda folder: change_index(folder, lambda index: index.update(shards=[], num_images=0)),
        {},
        f"{{tmp}}/{INDEX}: names no images; {AGAIN}",
    ),
    "a label out of range": (
        lambda folder: change_index(folder, lambda index: index["shards"][0].update(labels=[0] * 23 + [4])),
        {},
        f"{{tmp}}/{INDEX}, image 23: label 4 is outside 0 ... 3; correct data.num_classes, data.label_column or "
        "data.split",
    ),
    "a shard is missing": (
        lambda folder: (folder / SHARD).unlink(),
        {},
        f"{{tmp}}/{SHARD}: this shard is missing; {AGAIN}",
    ),
    "a shard is cut off": (
        lambda folder: os.truncate(folder / SHARD, 1000),
        {},
        f"{{tmp}}/{SHARD}: this shard has 1000 bytes instead of {{size}}; {AGAIN}",
    ),
    "a damaged header": (
        lambda folder: flip_a_bit(folder / SHARD, 8),
        {},
        f"{{tmp}}/{SHARD}: cannot be read as safetensors (Error while deserializing header: invalid JSON in header: "
        f"expected value at line 1 column 1); {AGAIN}",
    ),
    "a header without end": (
        cut_header,
        {},
        f"{{tmp}}/{SHARD}: cannot be read as safetensors (Error while deserializing header: header too large); {AGAIN}",
    ),
    "a shard of another set": (
        other_tensors,
        {},
        f"{{tmp}}/{SHARD}: its moments have shape [12, 16, 4, 4] instead of [24, 8, 4, 4]; {AGAIN}",
    ),
}


@pytest.mark.parametrize(("prepare", "options", "message"), SHARDS.values(), ids=SHARDS)
def test_shards(prepare, options, message, encoded, autoencoder, tmp_path):
    folder = tmp_path / "latents"
    shutil.copytree(encoded(), folder)
    if prepare:
        prepare(folder)
    with pytest.raises(UserError) as error:
        source = create_source(latent_config(folder, autoencoder, **options), 0)
        list(source.samples(np.arange(len(source))))
    size = (encoded() / SHARD).stat().st_size
    assert str(error.value).replace(str(folder), "{tmp}") == message.replace("{size}", str(size))


DAMAGED = "this image cannot be decoded: its file is damaged, or holds more than tensors and plain values"
OFFICIAL = {
    "a number is missing": (
        lambda folder: (folder / "00000003.pt").unlink(),
        {},
        "{tmp}/00000003.pt: this file is missing, and 00000199.pt is there; copy or encode the set again",
    ),
    "mirrored": (
        None,
        {"horizontal_flip": True},
        "{tmp}: official latents hold no moments of mirrored images, which data.horizontal_flip needs; set it to false",
    ),
    "another size": (
        None,
        {"image_size": 64},
        "{tmp}/00000000.pt: has moments of shape (8, 4, 4) and data.image_size 64 needs (8, 8, 8); correct it, or "
        "data.path",
    ),
    "other classes": (
        None,
        {"num_classes": 3},
        "{tmp}/00000150.pt: label 3 is outside 0 ... 2; correct data.num_classes, data.label_column or data.split",
    ),
    "another file": (
        lambda folder: torch.save({"weight": torch.zeros(3)}, folder / "00000001.pt"),
        {},
        "{tmp}/00000001.pt: is no official latent, a dict of image (8, side, side) and label; correct data.path",
    ),
    "a tensor alone": (
        lambda folder: torch.save(torch.zeros(8, 4, 4), folder / "00000001.pt"),
        {},
        "{tmp}/00000001.pt: is no official latent, a dict of image (8, side, side) and label; correct data.path",
    ),
    "all damaged": (
        lambda folder: [file.write_bytes(b"no archive") for file in folder.iterdir()],
        {},
        f"{{tmp}}/00000000.pt: {DAMAGED}; nor can the 7 after it; check data.path (and data.image_column of "
        "Parquet files), or download the files again",
    ),
    "pickles with code": (
        lambda folder: [torch.save({"image": MakesFolder(folder)}, file) for file in folder.iterdir()],
        {},
        f"{{tmp}}/00000000.pt: {DAMAGED}; nor can the 7 after it; check data.path (and data.image_column of "
        "Parquet files), or download the files again",
    ),
}


@pytest.mark.parametrize(("prepare", "options", "message"), OFFICIAL.values(), ids=OFFICIAL)
def test_official_folders(prepare, options, message, encoded, autoencoder, tmp_path):
    folder = tmp_path / "official"
    write_official(folder, encoded())
    if prepare:
        prepare(folder)
    with pytest.raises(UserError) as error:
        source = create_source(latent_config(folder, autoencoder, **options), 0)
        require_first_images(source)
        list(source.samples(np.arange(len(source))))
    assert str(error.value).replace(str(folder), "{tmp}") == message
    assert not (folder / "hacked").exists()


def test_another_autoencoder_is_told_and_used(encoded, autoencoder, tmp_path):
    source = create_source(latent_config(encoded(), tmp_path / "other"), 0)
    assert source.warnings == [
        f"{encoded()}: was encoded by {autoencoder}, and data.autoencoder, which decodes, is {tmp_path}/other"
    ]


def test_training_that_will_make_images_asks_for_the_autoencoder_at_once(fails, encoded, autoencoder, tmp_path):
    yaml = tmp_path / "run.yaml"
    data = {"kind": "latents", "path": str(encoded()), "image_size": 32, "num_classes": 4, "num_workers": 0}
    yaml.write_text(
        json.dumps({"model": {"name": "pmf_tiny_2"}, "data": {**data, "autoencoder": str(tmp_path / "no")}})
    )
    training = ("training.max_steps=1", "training.global_batch_size=4", "training.mixed_precision=no")
    arguments = ("--config", str(yaml), *training, f"training.output_dir={tmp_path}/run")
    line = fails(train_command.main, *arguments, "sampling.final_images=10", "training.sample_every=0")
    assert f"error: data.autoencoder {tmp_path}/no: there is no such folder;" in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.usefixtures("autoencoder")
@pytest.mark.parametrize("verb", ["sample", "fid", "sweep"])
def test_ranks_agree_that_the_autoencoder_is_gone_before_anything_is_written(verb, tmp_path):
    """One line on one rank, status 2 on both, and none waits for the other."""
    weights = write_latent_weights(tmp_path / "network.safetensors", tmp_path / "gone")
    arguments = ["--checkpoint", str(weights), "--num-images", "4", "--output", str(tmp_path / "out")]
    if verb != "sample":
        arguments += ["--reference", "digits"]
    with started(Script("eval.py", (verb, *arguments)), tmp_path / "printed", ranks=2) as run:
        assert run.wait() == [2, 2], run.printed()
        assert run.printed("stderr") == (
            f"error: data.autoencoder {tmp_path}/gone: there is no such folder; give one that "
            "AutoencoderKL.save_pretrained wrote, or a name on the Hugging Face hub, with --autoencoder\n"
        )
    assert not (tmp_path / "out").exists()


def test_of_a_damaged_autoencoder_the_flag_is_not_the_advice(fails, autoencoder, tmp_path):
    weights = write_latent_weights(tmp_path / "network.safetensors", tmp_path / "wider")
    write_autoencoder(tmp_path / "wider", latent_channels=8)
    sample = ("--checkpoint", str(weights), "--num-images", "4", "--output", str(tmp_path / "out"))
    line = fails(eval_command.main, "sample", *sample)
    assert line.endswith("; data.kind latents takes 4 at 1/8 from 3\n")
    assert line.count("\n") == 1


@pytest.mark.parametrize("verb", ["sample", "fid", "sweep"])
def test_pixels_have_no_autoencoder(verb, fails, finished_run, tmp_path):
    arguments = ["--checkpoint", str(finished_run), "--num-images", "4", "--output", str(tmp_path / "out")]
    if verb != "sample":
        arguments += ["--reference", "digits"]
    line = fails(eval_command.main, verb, *arguments, "--autoencoder", "a/b")
    assert line == (
        "error: --autoencoder a/b: the checkpoint's data.kind is digits, which has no autoencoder; leave it out\n"
    )
    assert not (tmp_path / "out").exists()
