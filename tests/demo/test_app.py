"""The app in a browser follows its controls with the pixels of ``generate``; and what it finds beside the browser."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pmf
from pmf.config.yaml_file import load_config
from pmf.data.source import create_source
from pmf.demo.studio import Studio, as_picture, nearest_images
from pmf.errors import UserError
from tests.demo.visit import Visit
from tests.export.small import small_generator
from tests.launch import ROOT

ENLARGED = 12
"""8 pixels are shown as 96."""
SHOWN = f"""async (id) => Promise.all(Array.from(document.querySelectorAll(`#${{id}} img`), async (image) => {{
    await image.decode();
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const canvas = Object.assign(document.createElement("canvas"), {{ width, height }});
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, width, height).data;
    const found = [];
    for (let y = 0; y < height; y += {ENLARGED})
        for (let x = 0; x < width; x += {ENLARGED}) found.push(data[4 * (y * width + x)]);
    return found;
}}))"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, Studio]]:
    """Where the app of a small generator is served, and its studio."""
    pytest.importorskip("gradio", reason="needs gradio: uv sync --extra demo")
    from pmf.demo.app import build_app, launch

    small_generator(tmp_path)
    studio = Studio(lambda ema: pmf.load(tmp_path / "one_product.safetensors", ema=ema))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = build_app(studio)
    yield launch(app, port)[1], studio
    app.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # gradio's own, of what it is built on
def test_the_app_shows_the_pixels_of_generate(visit: Visit, address: tuple[str, Studio]):
    where, studio = address
    visit.page.goto(where)

    def wait_for(place: str, expected: Tensor) -> None:
        """Until these images are shown, no value of them another."""
        wanted = expected.flatten(1).tolist()
        visit.page.wait_for_function(
            f"async ([id, wanted]) => JSON.stringify(await ({SHOWN})(id)) === JSON.stringify(wanted)",
            arg=[place, wanted],
            polling=500,
        )

    generate, interpolate = studio.model.generate, studio.model.interpolate
    wait_for("grid", generate(0, num_images=10, output="tensor"))
    wait_for("strip", interpolate((0, 1), seeds=(0, 0), output="tensor"))
    visit.page.get_by_label("Seed", exact=True).fill("5")
    visit.page.get_by_label("Seed", exact=True).press("Tab")
    wait_for("grid", generate(0, num_images=10, seed=5, output="tensor"))
    wait_for("strip", interpolate((0, 1), seeds=(5, 0), output="tensor"))
    visit.page.get_by_role("button", name="Find the nearest").click()
    visit.page.wait_for_selector("#nearest img")
    assert visit.complaints == []


def test_a_file_that_a_browser_may_read_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gradio", reason="needs gradio: uv sync --extra demo")
    from pmf.demo.app import grid_files, strip_files

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    small_generator(tmp_path)
    studio = Studio(lambda ema: pmf.load(tmp_path / "one_product.safetensors", ema=ema))
    guidance = (3.0, 0.0, 1.0, 1, None)
    grid = grid_files(studio, 0, 0, 10, *guidance)
    assert len(set(grid)) == 10
    Path(grid[0]).write_bytes(b"as it was")
    assert strip_files(studio, 0, 0, *guidance, 1, 0, 8)[0] == grid[0]  # the same class and seed
    assert grid_files(studio, 0, 0, 10, *guidance) == grid
    assert Path(grid[0]).read_bytes() == b"as it was"


def test_the_nearest_training_image_is_found(monkeypatch: pytest.MonkeyPatch):
    config = load_config(ROOT / "configs" / "digits.yaml")
    source = create_source(config.data, 0)
    wanted = [0, 700, 1796]
    images = torch.from_numpy(np.stack([sample.image for sample in source.samples(np.array(wanted))]))
    noisy = (images.int() + torch.tensor([4, -4]).repeat(32).view(1, 1, 8, 8)).clamp(0, 255).to(torch.uint8)
    monkeypatch.setattr("pmf.demo.studio.CHUNK_VALUES", 64 * 100)  # several chunks, the last of them not full
    found = nearest_images(noisy, config)
    for image, copy, (picture, distance) in zip(images, noisy, found, strict=True):
        assert np.array_equal(np.asarray(picture)[::ENLARGED, ::ENLARGED], image[0].numpy())
        expected = float((image.double() - copy.double()).square().mean().sqrt())
        assert distance == pytest.approx(expected, rel=1e-12)  # float64, sums of 64 integers


def test_without_the_data_set_a_line_says_so(tmp_path: Path):
    config = load_config(ROOT / "configs" / "pmf_b_16.yaml", [f"data.path={tmp_path / 'gone'}"])
    with pytest.raises(UserError, match=r"data.path does not exist; .*; nearest training images need the data set"):
        nearest_images(torch.zeros(1, 3, 256, 256, dtype=torch.uint8), config)


@pytest.mark.parametrize(("channels", "side", "shown"), [(1, 8, 96), (3, 64, 128), (3, 256, 256)])
def test_small_images_are_enlarged_by_a_whole_factor(channels: int, side: int, shown: int):
    image = np.random.default_rng(0).integers(256, size=(channels, side, side), dtype=np.uint8)
    picture = np.asarray(as_picture(image)).reshape(shown, shown, channels)
    factor = shown // side
    assert np.array_equal(picture[::factor, ::factor], image.transpose(1, 2, 0))
    assert np.array_equal(picture[factor - 1 :: factor, factor - 1 :: factor], image.transpose(1, 2, 0))
