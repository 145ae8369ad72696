"""One thread per process, no network, one server of processes, and nothing of accelerate's from test to test.

The tests' tensors are small, and threads of two processes on two cores block each other.
"""

import fcntl
import functools
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

import tests.offline  # noqa: F401  (from here on)
from tests.launch import PRELOADED


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need a GPU say so with their marker alone."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _server_of_processes():
    """Started before the library starts one for its loaders, which would not have done the imports: there is one."""
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()

    import torch  # while the server imports it too; what only divides the tests over processes needs neither

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """What a trainer or a command in this process leaves in accelerate's global state goes with the test."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        assert not PartialState._shared_state


_TABLES: dict[str, list[dict[str, object]]] = {}
"""By module of the library, each of which is looked through once."""


def _rows() -> list[tuple[str, int, list[str]]]:
    """The names in all tables, as far as the library is loaded."""
    for module in [name for name in sys.modules if name.startswith("pmf.") and name not in _TABLES]:
        values = vars(sys.modules[module]).items()
        _TABLES[module] = [v for name, v in values if isinstance(v, dict) and name.isupper() and name[0] != "_"]
    return [(module, i, list(table)) for module, tables in _TABLES.items() for i, table in enumerate(tables)]


@pytest.fixture(autouse=True)
def _rows_go_with_their_test():
    """A row left in a table would make the tests after it depend on which process ran this one."""
    before = _rows()
    yield
    assert _rows()[: len(before)] == before


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A path of that name, made by the first of all the tests that ask for it and changed by none.

    The processes that pytest-xdist divides the tests over share it; ``make`` gets the path, which is not there yet.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, make: Callable[[Path], object]) -> Path:
        path = shared / "once" / name
        path.parent.mkdir(exist_ok=True)
        with path.with_name(f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_size == 0:  # asked only now: whoever had the lock may have made it
                make(path)
                lock.write("made")
        return path

    return get


@pytest.fixture(scope="session")
def digits_run(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The tiny digits run (``TINY`` of tests/launch.py), finished."""
    from tests.launch import train_tiny

    return once("digits run", train_tiny)


@pytest.fixture(scope="session", autouse=True)
def _one_fit() -> Iterator[None]:
    """Evaluations in this process share one fit of the digits' features: seconds, and the same numbers each time."""
    from pmf.evaluation import extractor_table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor_table, "fit_digit_features", functools.cache(extractor_table.fit_digit_features))
        yield


@pytest.fixture(scope="session")
def autoencoder(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a tiny AutoencoderKL of random weights."""
    pytest.importorskip("diffusers", reason="needs diffusers: uv sync --extra latent")
    from tests.latents import write_autoencoder

    return once("autoencoder", write_autoencoder)


@pytest.fixture(scope="session")
def jpegs(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder of four class folders with 50 small JPEGs each."""
    from tests.latents import write_jpegs

    return once("jpegs", write_jpegs)


@pytest.fixture(scope="session")
def encoded(
    once: Callable[[str, Callable[[Path], object]], Path], jpegs: Path, autoencoder: Path
) -> Callable[..., Path]:
    """Calls for the latents of the JPEGs, and of their mirrored images, as float32 or float16."""
    from tests.latents import encode_jpegs

    return lambda dtype="float32": once(
        f"latents {dtype}", lambda folder: encode_jpegs(jpegs, autoencoder, folder, dtype)
    )
