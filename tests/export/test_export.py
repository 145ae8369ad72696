"""A file makes the images that the network makes, says what it is, and is not there if it would not."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from pmf.errors import UserError
from pmf.export.formats import export_files, run_onnx
from pmf.export.one_graph import OneGraph
from pmf.generation.noise import NoiseOptions, image_noise
from pmf.generator.model import Generator
from pmf.net.sizes import IMF_TRANSFORMER, PIXEL_TRANSFORMER, SIZES, NetworkSize
from tests.export.small import generator_of, small_generator

INTERVAL = (0.1, 0.6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    model = small_generator(tmp_path_factory.mktemp("weights"))
    images = model.generate(num_images=8, seed=4, output="tensor")
    assert float((images % 255 == 0).float().mean()) < 0.2, "black and white images would all look alike"
    return model


@pytest.fixture(scope="module")
def files(model: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both kinds of file."""
    folder = tmp_path_factory.mktemp("files")
    lines = export_files(model, onnx=folder / "model.onnx", pt2=folder / "model.pt2")
    assert len(lines) == 2
    return folder


def inputs_for(model: Generator, rows: int, omega: float = 3.0) -> dict[str, Tensor]:
    """What images 0 ... rows - 1 of seed 4 are made of, by the documents."""
    return {
        "noise": image_noise(NoiseOptions(seed=4, shape=model.image_shape, scale=1.0), range(rows)),
        "label": torch.arange(rows) % 10,
        "omega": torch.full((rows,), omega),
        "interval": torch.tensor([INTERVAL]).expand(rows, 2).contiguous(),
    }


def assert_same_images(found: Tensor, expected: Tensor) -> None:
    # A value near k + 1/2 may round to either side: in float32, of these few hundred values, hardly one.
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    assert int((found != expected).sum()) <= 1
    assert int((found.int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_an_onnx_file_makes_the_images_of_generate_in_batches_of_any_size(model: Generator, files: Path, rows: int):
    expected = model.generate(num_images=rows, seed=4, omega=3.0, interval=INTERVAL, output="tensor")
    assert_same_images(run_onnx(files / "model.onnx")(inputs_for(model, rows)), expected)


def test_each_image_of_a_batch_has_its_own_guidance(model: Generator, files: Path):
    run = run_onnx(files / "model.onnx")
    inputs = inputs_for(model, 2)
    inputs["omega"] = torch.tensor([1.0, 9.0])
    together = run(inputs)
    for row in (0, 1):
        alone = run({name: tensor[row : row + 1] for name, tensor in inputs.items()})
        assert_same_images(together[row : row + 1], alone)
    assert not torch.equal(together[1], run(inputs_for(model, 2))[1])


def test_a_pt2_file_makes_the_images_of_generate(model: Generator, files: Path):
    made = torch.export.load(files / "model.pt2").module()(**inputs_for(model, 5))
    expected = model.generate(num_images=5, seed=4, omega=3.0, interval=INTERVAL, output="tensor")
    assert_same_images(made, expected)


def test_a_file_says_what_it_is(model: Generator, files: Path):
    session = onnxruntime.InferenceSession(files / "model.onnx")
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert shapes == {"noise": ["batch", 1, 8, 8], "label": ["batch"], "omega": ["batch"], "interval": ["batch", 2]}
    carried = session.get_modelmeta().custom_metadata_map
    assert json.loads(carried["class_names"]) == list("0123456789")
    assert carried["weights"] == model.weights_source
    assert json.loads(carried["sampling"])["omega"] == 2
    assert json.loads(carried["config"])["model"]["name"] == "one_product"
    extra = {"pmf.json": ""}
    torch.export.load(files / "model.pt2", extra_files=extra)
    assert json.loads(extra["pmf.json"])["weights"] == model.weights_source


def test_a_file_of_other_images_is_not_left(tmp_path: Path):
    model = small_generator(tmp_path, "other_when_traced")
    # 0.02 of 2, from black to white, are 2.55 grey levels.
    with pytest.raises(UserError, match=r"its images are not those of the network: .* nothing was written"):
        export_files(model, onnx=tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["other_when_traced.safetensors"]


def test_large_weights_stand_beside_the_file(model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 100)
    export_files(model, onnx=tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    expected = model.generate(num_images=3, seed=4, omega=3.0, interval=INTERVAL, output="tensor")
    assert_same_images(run_onnx(tmp_path / "model.onnx")(inputs_for(model, 3)), expected)


def test_several_steps_are_one_graph_too(model: Generator, tmp_path: Path):
    export_files(model, pt2=tmp_path / "model.pt2", num_steps=3)
    made = torch.export.load(tmp_path / "model.pt2").module()(**inputs_for(model, 3))
    expected = model.generate(num_images=3, seed=4, steps=3, omega=3.0, interval=INTERVAL, output="tensor")
    assert_same_images(made, expected)


def test_a_method_that_fixes_guidance_has_no_inputs_for_it(tmp_path: Path):
    model = generator_of(tmp_path / "w.safetensors", "digits_meanflow", "one_product", "sampling.omega=1")
    graph = OneGraph(model)
    assert list(graph.example(2)) == ["noise", "label"]
    inputs = {name: tensor for name, tensor in inputs_for(model, 4).items() if name in ("noise", "label")}
    assert torch.equal(graph(**inputs), model.generate(num_images=4, seed=4, output="tensor"))


ONE_BLOCK = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
ARCHITECTURES: dict[str, tuple[str, NetworkSize, tuple[str, ...]]] = {
    "pmf": ("digits", NetworkSize(PIXEL_TRANSFORMER, head_depth=1, **ONE_BLOCK), ()),
    "imf": ("digits_imf", NetworkSize(IMF_TRANSFORMER, head_depth=1, **ONE_BLOCK), ()),
    "meanflow": (
        "digits_meanflow",
        NetworkSize("pmf.net.diffusion_transformer:DiffusionTransformer", **ONE_BLOCK),
        ("sampling.omega=1",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ARCHITECTURES)
def test_every_architecture_is_exported(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe, size, overrides = ARCHITECTURES[method]
    monkeypatch.setitem(SIZES, "one_block", size)
    model = generator_of(tmp_path / "w.safetensors", recipe, "one_block", *overrides)
    export_files(model, onnx=tmp_path / "model.onnx", num_steps=2)
    own = method != "meanflow"
    inputs = {name: tensor for name, tensor in inputs_for(model, 5).items() if own or name in ("noise", "label")}
    options = {"omega": 3.0, "interval": INTERVAL} if own else {}
    expected = model.generate(num_images=5, seed=4, steps=2, output="tensor", **options)
    assert_same_images(run_onnx(tmp_path / "model.onnx")(inputs), expected)
