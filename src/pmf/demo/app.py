"""The app: controls, a grid that follows them, a strip from one noise or class to another, nearest training images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from pmf.demo.studio import Studio, as_picture, nearest_images
from pmf.errors import UserError

try:
    import gradio as gr
    from gradio.processing_utils import save_file_to_cache
    from gradio.utils import get_upload_folder
except ImportError:
    raise UserError(
        'the app needs gradio, which is not installed; uv sync --extra demo, or pip install "pmf[demo]"'
    ) from None

MAX_IMAGES = 48
MAX_STEPS = 16


def serve(studio: Studio, port: int, tell: Callable[[str], None]) -> None:
    """Show the app to this machine alone until it is interrupted.

    Args:
        tell: called with the address when the app can be visited.

    Raises:
        UserError: the port is taken.
    """
    app = build_app(studio)
    _, address, _ = launch(app, port)
    tell(address)
    app.block_thread()


def launch(app: gr.Blocks, port: int) -> tuple[Any, str, str]:
    """Start to serve the app in threads, without a request to anybody else.

    Returns:
        Gradio's server, the address, and ''.

    Raises:
        UserError: the port is taken.
    """
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",))  # its own are Google's
    try:
        return app.launch(
            server_name="127.0.0.1",
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
        )
    except OSError:
        raise UserError(f"--port {port}: something else listens there; give another") from None


def build_app(studio: Studio) -> gr.Blocks:
    """The app of one studio; what its visitors choose is shared in one respect, the average that is loaded."""
    model, config = studio.model, studio.model.config
    classes = [(name, label) for label, name in enumerate(model.class_names)]
    omega, (t_min, t_max) = config.sampling.omega, config.sampling.interval
    with gr.Blocks(title="One-step image generator", analytics_enabled=False) as app:
        gr.Markdown(f"# One-step image generator\n{model.weights_source}")
        with gr.Row():
            with gr.Column(scale=1):
                controls: list[Any] = [
                    gr.Dropdown(classes, value=0, label="Class"),
                    gr.Number(0, label="Seed", precision=0, minimum=0),
                    gr.Slider(1, MAX_IMAGES, value=10, step=1, label="Images"),
                    gr.Slider(
                        1, max(15, omega), value=omega, step=0.1, label="Guidance scale", visible=_open(studio, "omega")
                    ),
                    gr.Slider(0, 1, value=t_min, label="Guidance from t", visible=_open(studio, "interval")),
                    gr.Slider(0, 1, value=t_max, label="Guidance to t", visible=_open(studio, "interval")),
                    gr.Slider(1, MAX_STEPS, value=config.sampling.num_steps, step=1, label="Steps"),
                    gr.Dropdown(
                        list(model.averages), value=model.average, label="Average", visible=bool(model.averages)
                    ),
                ]
            with gr.Column(scale=3):
                grid = _gallery("Images", "grid", columns=5)
                button = gr.Button("Find the nearest training images")
                nearest = _gallery("Nearest training images, and their distance in grey levels", "nearest", columns=5)
        strip = _gallery("From the class and seed above to the second ones", "strip", columns=8)
        with gr.Row():
            ends: list[Any] = [
                gr.Dropdown(classes, value=min(1, len(classes) - 1), label="Second class"),
                gr.Number(0, label="Second seed", precision=0, minimum=0),
                gr.Slider(2, 16, value=8, step=1, label="Frames"),
            ]

        def show(call: Callable[..., Any], inputs: list[Any], output: gr.Gallery, triggers: list[Any]) -> None:
            # One at a time: there is one network. Of moves of a slider meanwhile only the last counts.
            gr.on(
                triggers,
                call,
                inputs,
                output,
                trigger_mode="always_last",
                concurrency_id="network",
                concurrency_limit=1,
                show_progress="minimal",
            )

        moves = [app.load, *(each.change for each in controls)]
        show(lambda *chosen: grid_files(studio, *chosen), controls, grid, moves)
        of_strip = [control for control in controls if control.label != "Images"]
        changes = [each.change for each in (*of_strip, *ends)]
        show(lambda *chosen: strip_files(studio, *chosen), [*of_strip, *ends], strip, [app.load, *changes])
        show(lambda *chosen: nearest_files(studio, *chosen), controls, nearest, [button.click])
    return app


def _open(studio: Studio, option: str) -> bool:
    return option in studio.open_options


def _gallery(title: str, name: str, columns: int) -> gr.Gallery:
    gr.Markdown(f"### {title}")  # a gallery's own label would cover its first image
    return gr.Gallery(
        label=title,
        show_label=False,
        elem_id=name,
        columns=columns,
        height="auto",
        object_fit="contain",
        interactive=False,
    )


def _options(
    studio: Studio, omega: float, t_min: float, t_max: float, steps: int, average: str | None
) -> dict[str, Any]:
    """The sampling options of the controls, once their average is loaded."""
    if average is not None:
        studio.choose_average(average)
    given = {"omega": omega, "interval": (t_min, t_max)}
    return {"steps": int(steps), **{name: given[name] for name in studio.open_options}}


def _tensor(studio: Studio, label: int, seed: int, count: float, *guidance: Any) -> Any:
    with _told():
        options = _options(studio, *guidance)
        return studio.model.generate([label], num_images=int(count), seed=seed, output="tensor", **options)


def grid_files(studio: Studio, *chosen: Any) -> list[str]:
    """The images of the controls, as files."""
    return [_png_file(as_picture(image)) for image in _tensor(studio, *chosen).numpy()]


def nearest_files(studio: Studio, *chosen: Any) -> list[tuple[str, str]]:
    """Their nearest training images, as files, with the distances."""
    with _told():
        found = nearest_images(_tensor(studio, *chosen), studio.model.config)
    return [(_png_file(picture), f"{distance:.1f}") for picture, distance in found]


def strip_files(studio: Studio, label: int, seed: int, *rest: Any) -> list[str]:
    """The frames from the first class and seed to the second, as files."""
    *guidance, second_label, second_seed, frames = rest
    with _told():
        made = studio.model.interpolate(
            (label, second_label),
            seeds=(seed, second_seed),
            frames=int(frames),
            output="tensor",
            **_options(studio, *guidance),
        )
    return [_png_file(as_picture(image)) for image in made.numpy()]


def _png_file(picture: Image.Image) -> str:
    """The file of a picture in Gradio's folder, its name made of its bytes; one that is there is left alone.

    A gallery that is given the picture itself writes such a file each time anew, in place. Grid and strip often
    show one picture, and a browser that fetched it for the one would get a part of it while the other is written.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture.save(file := Path(folder) / "image.png")
        return save_file_to_cache(file, get_upload_folder())


@contextmanager
def _told() -> Iterator[None]:
    """What a visitor cannot have is said in the app."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), duration=None) from None
