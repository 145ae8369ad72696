"""Mistakes about files for other programs and about the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pmf.demo.command import main as demo_main
from pmf.export.command import main as export_main
from tests.bad_input.cases import Case, each, write_file
from tests.latents import write_latent_weights

EXPORT = {
    "nothing to write": Case(
        message="nothing to write; give --onnx FILE.onnx, --pt2 FILE.pt2 or both", arguments=("{tmp}",)
    ),
    "another suffix": Case(
        message="--onnx {tmp}/model.pt: give a file name that ends in .onnx",
        arguments=("{tmp}", "--onnx", "{tmp}/model.pt"),
    ),
    "a file that is there": Case(
        message="--pt2 {tmp}/model.pt2: exists already; remove it or choose another name",
        arguments=("{tmp}", "--pt2", "{tmp}/model.pt2"),
        prepare=write_file("model.pt2", b""),
    ),
    "no folder": Case(
        message="--onnx {tmp}/gone/model.onnx: there is no folder {tmp}/gone; create it first",
        arguments=("{tmp}", "--onnx", "{tmp}/gone/model.onnx"),
    ),
    "no recipe": Case(
        message="one_gpu_65: cannot read this config (No such file or directory); did you mean one_gpu_64?",
        arguments=("{tmp}", "--onnx", "{tmp}/model.onnx", "--config", "one_gpu_65"),
    ),
    "weights of another file": Case(
        message="--onnx {tmp}/model.onnx.data: exists already; remove it or choose another name",
        arguments=("{tmp}", "--onnx", "{tmp}/model.onnx"),
        prepare=write_file("model.onnx.data", b""),
    ),
}
DEMO = {
    "a port for a page": Case(
        message="--port is for the app; leave it out, --export writes a page",
        arguments=("{tmp}", "--export", "{tmp}/page", "--port", "7860"),
    ),
    "no such port": Case(message="--port 70000: ports are 1 ... 65535", arguments=("{tmp}", "--port", "70000")),
    "a runtime for the app": Case(
        message="--onnxruntime-web is for the page that --export writes; leave it out",
        arguments=("{tmp}", "--onnxruntime-web", "{tmp}"),
    ),
    "no such runtime": Case(
        message="--onnxruntime-web {tmp}/gone: there is no such file or folder",
        arguments=("{tmp}", "--export", "{tmp}/page", "--onnxruntime-web", "{tmp}/gone"),
    ),
    "a folder that is there": Case(
        message="--export {tmp}: exists already; remove it or choose another name",
        arguments=("{tmp}", "--export", "{tmp}"),
    ),
}


@each(EXPORT)
def test_export_is_refused_in_one_line(case: Case, refused: Callable[..., str]):
    assert refused(export_main, case, *case.arguments) == case.message


@each(DEMO)
def test_the_demo_is_refused_in_one_line(case: Case, refused: Callable[..., str]):
    assert refused(demo_main, case, *case.arguments) == case.message


def test_latents_are_not_exported(fails: Callable[..., str], autoencoder: Path, tmp_path: Path):
    weights = write_latent_weights(tmp_path / "latent.safetensors", autoencoder)
    line = fails(export_main, str(weights), "--pt2", str(tmp_path / "model.pt2"))
    assert line.endswith(": makes latents (data.kind is latents); only networks that make pixels are exported\n")
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "model.pt2").exists()
