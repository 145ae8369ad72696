"""The static page in a browser: the noise of numpy, the pixels of ``generate``, nothing asked of anybody else."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmf.demo import static_page
from pmf.errors import UserError
from pmf.randomness import Stream, numpy_generator
from tests.demo.visit import Visit
from tests.export.small import small_generator
from tests.launch import ROOT

PAGE = ROOT / "src" / "pmf" / "demo" / "page"
DRAW = """async ([seeds, indices, count]) => {
    const { imageNoise } = await import("/noise.js");
    const rows = seeds.flatMap((seed) => indices.map((index) => new Uint8Array(imageNoise(seed, index, count).buffer)));
    const text = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
    return btoa(rows.map(text).join(""));
}"""
PIXELS = """(id) => Array.from(document.querySelectorAll(`#${id} canvas`), (canvas) =>
    Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data))"""
DONE = "document.querySelector('#status').textContent.startsWith('Done')"


def test_noise_in_the_browser_is_that_of_numpy(visit: Visit, serve: Callable[[Path], str]):
    visit.page.goto(f"{serve(PAGE)}/style.css")
    seeds, indices, count = [0, 1, 2**32 - 1, 2**32, 2**40 + 5, 2**53 - 1], [0, 1, 999, 50_000], 3000
    drawn = base64.b64decode(visit.page.evaluate(DRAW, [seeds, indices, count]))
    found = np.frombuffer(drawn, np.float32).reshape(-1, count)
    keys = [(seed, index) for seed in seeds for index in indices]
    expected = np.stack(
        [numpy_generator(Stream.IMAGE_NOISE, *key).standard_normal(count, dtype=np.float32) for key in keys]
    )
    tail = np.abs(expected) > 3.6541528  # where numpy takes a float32 logarithm of the C library
    assert tail.any()
    np.testing.assert_array_equal(found[~tail], expected[~tail])
    # One unit in the last place at 3.65 ... 7.
    np.testing.assert_allclose(found[tail], expected[tail], rtol=0, atol=2**-21)


@pytest.fixture(scope="module")
def runtime() -> Path:
    """The npm package that the page is written with."""
    found = ROOT / "node_modules" / static_page.PACKAGE
    if not found.is_dir():
        pytest.skip(f"needs {static_page.PACKAGE}: npm install --no-save {static_page.PACKAGE}")
    return found


def test_the_page_shows_the_pixels_of_generate(
    visit: Visit, serve: Callable[[Path], str], runtime: Path, tmp_path: Path
):
    model = small_generator(tmp_path)
    told = static_page.write_page(model, tmp_path / "page", runtime)
    assert told.endswith("bytes differ by 1")
    visit.page.goto(serve(tmp_path / "page"))

    def shown(place: str) -> torch.Tensor:
        visit.page.wait_for_function(DONE)
        pixels = torch.tensor(visit.page.evaluate(PIXELS, place), dtype=torch.uint8).view(-1, 8, 8, 4)
        assert bool((pixels[..., 3] == 255).all()) and bool((pixels[..., :1] == pixels[..., :3]).all())
        return pixels[..., :1].permute(0, 3, 1, 2)

    def assert_same(found: torch.Tensor, **options: Any) -> None:
        expected = model.generate(output="tensor", **options)
        # A value near k + 1/2 may round to either side; of these 640 values hardly one does.
        assert int((found != expected).sum()) <= 1

    first = shown("grid")
    assert_same(first, labels=[0], num_images=10, seed=0)
    visit.page.fill("#seed", "5000000000")  # more than 32 bits
    visit.page.select_option("#label", label="3")
    visit.page.fill("#t_max", "0.5")
    visit.page.fill("#omega", "7.5")
    second = shown("grid")
    assert not torch.equal(first, second)
    assert_same(second, labels=[3], num_images=10, seed=5_000_000_000, omega=7.5, interval=(0.0, 0.5))
    strip = model.interpolate(3, seeds=(5_000_000_000, 1), frames=8, omega=7.5, interval=(0.0, 0.5), output="tensor")
    assert int((shown("strip") != strip).sum()) <= 1
    assert visit.complaints == []


def test_a_page_needs_the_files_of_its_runtime(tmp_path: Path):
    model = small_generator(tmp_path)
    (tmp_path / "package").mkdir()
    with pytest.raises(UserError, match=r"has no dist/ort.wasm.min.mjs; give the folder of the npm package"):
        static_page.write_page(model, tmp_path / "page", tmp_path / "package")
    assert not (tmp_path / "page").exists()


def test_without_npm_a_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no npm here; run npm install onnxruntime-web here, or name its"):
        static_page.fetch_runtime(tmp_path)
