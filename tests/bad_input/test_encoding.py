"""Sets that cannot be encoded, and autoencoders that are none: one line, before anything is written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pmf.data import encode
from pmf.data.latent_shards import REQUEST
from tests.bad_input.cases import MakesFolder, png
from tests.latents import FLAGS, contents, write_autoencoder


def no_weights(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    torch.save({**weights, "code": MakesFolder(folder)}, folder / "diffusion_pytorch_model.bin")
    no_weights(folder)


def fewer_weights(folder: Path) -> None:
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_in.weight"]
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")


NO_FOLDER = (
    "there is no such folder; give one that AutoencoderKL.save_pretrained wrote, or a name on the Hugging Face hub"
)
NO_FILE = "(Error no file named diffusion_pytorch_model.safetensors found in directory {tmp}); give what "
AUTOENCODERS = {
    "no folder": (shutil.rmtree, NO_FOLDER),
    "no weights": (no_weights, f"cannot be read {NO_FILE}AutoencoderKL.save_pretrained wrote"),
    "a pickle": (pickled_weights, f"cannot be read {NO_FILE}AutoencoderKL.save_pretrained wrote"),
    "fewer weights": (fewer_weights, "its weights lack decoder.conv_in.weight; copy or download it again"),
    "cut off": (
        lambda folder: os.truncate(folder / "diffusion_pytorch_model.safetensors", 5000),
        "cannot be read (...); give what AutoencoderKL.save_pretrained wrote",
    ),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        "cannot be read (Error no file named config.json found in directory {tmp}); give what "
        "AutoencoderKL.save_pretrained wrote",
    ),
    "other latents": (
        lambda folder: write_autoencoder(folder, latent_channels=16),
        "makes 16 channels at 1/8 of the side from 3; data.kind latents takes 4 at 1/8 from 3",
    ),
}


def encode_arguments(tmp_path: Path, *more: str) -> tuple[str, ...]:
    """Of a set of two small images, one a class."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name / "1.png").write_bytes(png("RGB", 8))
    places = ("--data-path", f"{tmp_path}/images", "--output", f"{tmp_path}/latents")
    return (*places, "--kind", "imagefolder", "--num-classes", "2", "--image-size", "8", *FLAGS, *more)


@pytest.mark.parametrize(("prepare", "message"), AUTOENCODERS.values(), ids=AUTOENCODERS)
def test_autoencoders(prepare, message, fails, autoencoder, tmp_path):
    folder = tmp_path / "autoencoder"
    shutil.copytree(autoencoder, folder)
    prepare(folder)
    line = fails(encode.main, *encode_arguments(tmp_path, "--autoencoder", str(folder))).replace(str(folder), "{tmp}")
    beginning, _, end = f"error: data.autoencoder {{tmp}}: {message}\n".partition("...")
    assert line == beginning or (line.startswith(beginning) and line.endswith(end)), line
    assert line.count("\n") == 1
    assert not (folder / "hacked").exists()
    assert not (tmp_path / "latents").exists()


def test_an_autoencoder_on_the_hub_without_network(fails, autoencoder, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between attempts to connect
    line = fails(encode.main, *encode_arguments(tmp_path, "--autoencoder", "nobody/nothing"))
    assert line == (
        "error: data.autoencoder nobody/nothing: is not on this machine, and the Hugging Face hub cannot be reached or "
        "does not have it; download it once, or give a folder that AutoencoderKL.save_pretrained wrote\n"
    )


def test_the_extra_is_not_installed(fails, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "diffusers" else find(name, *rest)
    )
    line = fails(encode.main, *encode_arguments(tmp_path, "--autoencoder", f"{tmp_path}/none"))
    assert line == (
        f"error: data.autoencoder {tmp_path}/none: latents need diffusers; install it: uv sync --extra latent, or pip "
        'install "pmf[latent]"\n'
    )


COMMANDS = {
    "no data": (
        None,
        ("--data-path", "{tmp}/no"),
        "{tmp}/no: data.path does not exist; give the folder that holds one folder per class",
    ),
    "size": (None, ("--image-size", "20"), "--image-size 20: give a multiple of 8"),
    "fraction": (
        None,
        ("--max-corrupt-fraction", "1.5"),
        "argument --max-corrupt-fraction: 1.5 is not a share from 0 to 1; python -m pmf.data.encode --help shows what "
        "there is",
    ),
    "fraction of words": (
        None,
        ("--max-corrupt-fraction", "few"),
        "argument --max-corrupt-fraction: few is not a share from 0 to 1; python -m pmf.data.encode --help shows what "
        "there is",
    ),
    "classes": (
        None,
        ("--num-classes", "3"),
        "{tmp}/images: there are 2 class folders (a, b) but data.num_classes is 3; correct one of them, or data.path",
    ),
    "another folder": (
        lambda folder: (folder / "latents").mkdir() or (folder / "latents" / "thesis.tex").write_text("..."),
        (),
        "{tmp}/latents: is not empty and holds no encoding.json; choose another --output",
    ),
    "not a folder": (
        lambda folder: (folder / "latents").write_text("..."),
        (),
        "--output {tmp}/latents: cannot be written (File exists); choose another",
    ),
    "a record that is none": (
        lambda folder: (folder / "latents").mkdir() or (folder / "latents" / REQUEST).write_text("["),
        (),
        "{tmp}/latents/encoding.json: is not valid JSON; choose another --output, or remove it",
    ),
    "all corrupt": (
        lambda folder: [file.write_bytes(b"no picture") for file in (folder / "images").rglob("*.png")],
        (),
        "{tmp}/images/a/1.png: this image cannot be decoded: not one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM; nor can "
        "the 1 after it; check data.path (and data.image_column of Parquet files), or download the files again",
    ),
    "too many corrupt": (
        lambda folder: (folder / "images" / "a" / "1.png").write_bytes(b"no picture"),
        (),
        "{tmp}/images/a/1.png: this image cannot be decoded: not one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM; 1 images "
        "are corrupt and --max-corrupt-fraction allows 0 of 2; download the files again or raise it",
    ),
}


@pytest.mark.parametrize(("prepare", "arguments", "message"), COMMANDS.values(), ids=COMMANDS)
def test_encode(prepare, arguments, message, fails, autoencoder, tmp_path):
    given = encode_arguments(tmp_path, "--autoencoder", str(autoencoder))
    if prepare:
        prepare(tmp_path)
    printed = fails(encode.main, *given, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    lines = [line for line in printed.replace(str(tmp_path), "{tmp}").splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {message}"], printed
    assert "Traceback" not in printed


def test_encode_with_other_settings_than_before(fails, autoencoder, jpegs, tmp_path):
    given = encode_arguments(tmp_path, "--autoencoder", str(autoencoder))
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / REQUEST).write_text(json.dumps({"kind": "parquet"}))
    assert fails(encode.main, *given) == (
        f"error: {tmp_path}/latents: was begun with other settings (kind is parquet there, imagefolder here); choose "
        "another --output, or remove it\n"
    )


def test_more_images_a_pass_than_the_gpu_holds(fails, autoencoder, tmp_path, monkeypatch):
    def starved(_autoencoder: object, _images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("as CUDA says it")

    monkeypatch.setattr("pmf.data.encoding.encode_moments", starved)
    printed = fails(encode.main, *encode_arguments(tmp_path, "--autoencoder", str(autoencoder)))
    assert printed.splitlines()[-1] == (
        "error: --batch-size 8: the GPU's memory does not hold so many images; lower it, and remove "
        f"{tmp_path}/latents or choose another --output, for a folder keeps its batch size"
    )


def test_a_full_disk_and_going_on_after_it(fails, autoencoder, encoded, jpegs, tmp_path, monkeypatch):
    """The third shard cannot be written; started again, the command writes what is missing."""
    places = ("--data-path", str(jpegs), "--output", f"{tmp_path}/latents", "--autoencoder", str(autoencoder))
    given = (*places, "--kind", "imagefolder", "--num-classes", "4", "--image-size", "32", "--mirror", *FLAGS)

    def full(tensors: object, path: Path, metadata: object) -> None:
        if "00002" in path.name:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patched:
        patched.setattr("pmf.tensors.save_file", full)
        printed = fails(encode.main, *given)
    again = "make room and start the same command again"
    assert f"error: --output {tmp_path}/latents: cannot be written (No space left on device); {again}\n" in printed
    assert sorted(file.name for file in (tmp_path / "latents").iterdir()) == [
        REQUEST,
        "latents-00000.safetensors",
        "latents-00001.safetensors",
    ]
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr("sys.argv", ["encode", *given])
    encode.main()
    assert contents(tmp_path / "latents") == contents(encoded())
