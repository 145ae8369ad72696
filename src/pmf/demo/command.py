"""Play with weights in the browser: %(prog)s RUN, or write a page of them: --export DIR.

The app (uv sync --extra demo) makes images on this machine and shows them at http://127.0.0.1:7860. The page that
--export writes needs no Python any more: it runs the model in the visitor's browser, from any file server. See
docs/demo.md.
"""

from __future__ import annotations

import argparse
import webbrowser

from pmf.commands import CommandParser, program, to_path, whole_from
from pmf.config.inputs import require_free, require_there
from pmf.errors import UserError
from pmf.export.command import add_weights_flags, open_weights, require_weights

PORT = 7860


def main() -> None:
    """Parse, and show or write."""
    parser = CommandParser(
        prog=program("python -m pmf.demo"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_weights_flags(parser)
    parser.add_argument("--port", type=whole_from(1), help=f"of the app; default: {PORT}")
    parser.add_argument("--open", action="store_true", help="open a browser when the app runs")
    parser.add_argument("--export", type=to_path, metavar="DIR", help="write a static page instead; a new folder")
    parser.add_argument(
        "--onnxruntime-web",
        type=to_path,
        metavar="DIR",
        help="the unpacked npm package for the page; default: node_modules/onnxruntime-web, else npm fetches it",
    )
    arguments = parser.parse_args()
    _require_fitting(arguments)
    require_weights(arguments)
    require_there("--onnxruntime-web", arguments.onnxruntime_web)
    if arguments.export is None:
        _show(arguments)
    else:
        _write(arguments)


def _require_fitting(arguments: argparse.Namespace) -> None:
    if arguments.export is None and arguments.onnxruntime_web is not None:
        raise UserError("--onnxruntime-web is for the page that --export writes; leave it out")
    for option in ("port", "open"):
        if arguments.export is not None and getattr(arguments, option):
            raise UserError(f"--{option} is for the app; leave it out, --export writes a page")
    if arguments.export is not None:
        require_free("--export", arguments.export)
    if arguments.port is not None and arguments.port > 65535:
        raise UserError(f"--port {arguments.port}: ports are 1 ... 65535")


# Below, imports stand in the functions: torch's stack takes seconds, and wrong arguments should not.


def _show(arguments: argparse.Namespace) -> None:
    from pmf.demo.app import serve
    from pmf.demo.studio import Studio

    studio = Studio(lambda ema: open_weights(arguments, ema), arguments.ema)

    def tell(address: str) -> None:
        print(f"{studio.model.weights_source} at {address}; Ctrl-C ends it", flush=True)
        if arguments.open:
            webbrowser.open(address)

    serve(studio, arguments.port or PORT, tell)


def _write(arguments: argparse.Namespace) -> None:
    from pmf.demo.static_page import write_page

    model = open_weights(arguments, arguments.ema, device="cpu")
    print(write_page(model, arguments.export, arguments.onnxruntime_web))
    print(f"look at it: python -m http.server --directory {arguments.export}, then http://localhost:8000")
