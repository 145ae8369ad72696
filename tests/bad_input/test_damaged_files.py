"""Files that evaluation and resuming read, damaged or of another kind: one line, whatever the damage."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from pmf.checkpoint.official.pytorch_file import read_pytorch
from pmf.checkpoint.saved_weights import load_weights
from pmf.checkpoint.storage import Checkpoint, save_checkpoint
from pmf.commands import run_command
from pmf.config.sections import as_plain
from pmf.config.yaml_file import load_config
from pmf.data.options import DataConfig
from pmf.data.source import create_source
from pmf.distributed.world import ALONE
from pmf.errors import UserError
from pmf.evaluation.extractors import load_custom
from pmf.evaluation.statistics_file import load_statistics
from pmf.evaluation.subjects import folder_subject
from pmf.generation.folder import write_image_folder
from pmf.generation.images import ImageMaker
from pmf.generation.pictures import save_png
from pmf.generation.plan import SamplingPlan
from pmf.training.metrics import MetricsLog
from tests.checkpoint.loading import load_checkpoint
from tests.evaluation.networks import SmallFeatures
from tests.launch import ROOT

CONFIG = load_config(ROOT / "configs" / "digits.yaml")
FEATURES = torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MEAN, COVARIANCE = FEATURES.mean(0).numpy(), np.cov(FEATURES.numpy(), rowvar=False)
PROTOCOL = json.dumps({"extractor": {"name": "small", "sha256": "0" * 64}, "image_shape": [3, 8, 8]})
LAYOUTS = {
    "pmf": {"n": np.int64(200), "mu": MEAN, "sigma": COVARIANCE, "protocol": np.str_(PROTOCOL)},
    "adm": {"mu": MEAN.astype(np.float32), "sigma": COVARIANCE.astype(np.float32)},
    "pmf-jax": {"ref_mu": MEAN, "ref_sigma": COVARIANCE},
}

# What may stand where a JSON object should.
NO_OBJECTS: dict[str, bytes] = {
    "empty": b"",
    "torn": b'{"step": 3, "config": {"sam',
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "not UTF-8": b'\xff{"a": 1}',
    "zeros": bytes(40),
    "endless nesting": b"[" * 100_000,
}


def refusal_of(read: Callable[[], object]) -> str | None:
    """The error of a call, or None if it ends well. Any other error is the test's."""
    try:
        read()
    except UserError as error:
        return str(error)
    return None


def one_line(function: Callable[[], object], where: object) -> str:
    """The error that a call must end with."""
    with pytest.raises(UserError) as error:
        function()
    assert str(error.value).startswith(str(where))
    assert "\n" not in str(error.value)
    return str(error.value)


def damages(content: bytes, seed: int) -> bytes:
    """Some bytes changed, a piece left out or set to zero, or the end cut off."""
    chance = random.Random(seed)
    changed, place = bytearray(content), chance.randrange(len(content))
    kind = seed % 4
    if kind == 0:
        changed[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del changed[place : place + chance.randrange(1, 20)]
    elif kind == 2:
        changed[place : place + 30] = bytes(len(changed[place : place + 30]))
    else:
        del changed[place:]
    return bytes(changed)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_are_read_as_they_were_written_or_refused(layout, save, tmp_path):
    path = tmp_path / "statistics.npz"
    save(path, **LAYOUTS[layout])
    original, expected = path.read_bytes(), load_statistics(path)
    refused = 0
    for seed in range(240):
        path.write_bytes(damages(original, seed))
        message = refusal_of(lambda: load_statistics(path))
        if message:
            assert message.startswith(f"{path}: ")
            assert "\n" not in message
            refused += 1
        else:  # time stamps and such
            found = load_statistics(path)
            assert torch.equal(found.gaussian.mean, expected.gaussian.mean)
            assert torch.equal(found.gaussian.covariance, expected.gaussian.covariance)
    assert refused > 160


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n", np.arange(3), "its n is no number of images"),
        ("n", np.float64("nan"), "its n is no number of images"),
        ("n", np.int64(-4), "its n is no number of images"),
        ("mu", np.array(["a"] * 12), "mu is of <U1, not of numbers"),
        ("sigma", COVARIANCE.astype(complex), "sigma is of complex128, not of numbers"),
        *(
            pytest.param("protocol", np.str_(text.decode("latin-1")), "its protocol: ", id=f"protocol is {kind}")
            for kind, text in NO_OBJECTS.items()
        ),
        ("protocol", np.str_('{"extractor": "inception"}'), "its protocol names no extractor or shape"),
        ("protocol", np.str_('{"image_shape": 3}'), "its protocol names no extractor or shape"),
    ],
)
def test_statistics_of_other_kinds(key, value, message, tmp_path):
    path = tmp_path / "statistics.npz"
    np.savez(path, **{**LAYOUTS["pmf"], key: value})
    assert message in one_line(lambda: load_statistics(path), f"{path}: ")


def test_members_that_are_no_arrays(tmp_path):
    path = tmp_path / "statistics.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu", b"no array")
        archive.writestr("sigma.npy", b"no array")
    one_line(lambda: load_statistics(path), f"{path}: ")


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_sampling_json(content, tmp_path):
    for index in range(12):
        save_png(torch.full((1, 8, 8), index, dtype=torch.uint8), tmp_path / f"{index:06d}.png")
    record = tmp_path / "sampling.json"
    record.write_bytes(NO_OBJECTS[content])
    plan = SamplingPlan(num_images=12, labels=(0,), seed=0, settings={}, decoding={}, weights="w")
    maker = ImageMaker(torch.nn.Identity(), CONFIG, torch.device("cpu"))
    message = one_line(lambda: list(write_image_folder(maker, plan, tmp_path, ALONE)), f"{record}: ")
    assert message.endswith("; delete the folder or choose another")
    message = one_line(lambda: folder_subject(tmp_path, None, ALONE), f"{record}: ")
    assert message.endswith("; remove it if the images are not those of one call of eval.py sample")
    assert len(list(tmp_path.glob("*.png"))) == 12


def write_run(folder: Path) -> Path:
    """A run with checkpoints of steps 1 and 2; returns the newer."""
    for step in (1, 2):
        tensors = {stem: {"a": torch.full((3,), float(step))} for stem in ("model", "ema_10", "optimizer")}
        newest = save_checkpoint(
            folder, Checkpoint(tensors=tensors, state={"step": step, "config": as_plain(CONFIG)}), keep=3
        )
    return newest


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize("content", NO_OBJECTS)
def test_jsons_of_a_checkpoint(name, content, tmp_path, capsys):
    newest = write_run(tmp_path)
    (newest / name).write_bytes(NO_OBJECTS[content])
    one_line(lambda: load_checkpoint(newest), f"{newest}: {name} ")
    assert load_weights(tmp_path, None).weights["a"].tolist() == [1.0] * 3
    assert capsys.readouterr().out.startswith(f"warning: {newest}: {name} ")
    (newest / "manifest.json").unlink()  # files that a user has copied without it
    if name == "state.json":
        one_line(lambda: load_weights(newest, None), newest / name)
    assert load_weights(newest, "10").weights["a"].tolist() == [2.0] * 3


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_the_config_within_a_file_of_weights(content, tmp_path):
    path = tmp_path / "w.safetensors"
    text = NO_OBJECTS[content].decode(errors="replace")
    save_file({"a": torch.zeros(3)}, path, metadata={"config": text})
    one_line(lambda: load_weights(path, None), path)


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_metrics_of_a_run_that_goes_on(content, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 1, "loss": 2.5}', NO_OBJECTS[content], b'{"step": 2, "loss": 2.0}', b'{"step": 3, "lo']
    metrics.write_bytes(b"\n".join(lines))
    MetricsLog(tmp_path, CONFIG, 1, warn=print).write({"step": 2, "loss": 1.5})
    found = []
    for line in metrics.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    steps = [record["step"] for record in found if isinstance(record, dict) and "step" in record]
    assert steps == [1, 2]
    assert found[-1] == {"step": 2, "loss": 1.5}


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_an_evaluation_of_a_run(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "evaluation").mkdir()
    torn = tmp_path / "evaluation" / "step_00000001.json"
    torn.write_bytes(NO_OBJECTS[content])
    monkeypatch.setattr("sys.argv", ["curve", str(tmp_path), "--output", str(tmp_path / "curve.png")])
    with pytest.raises(SystemExit) as left:
        run_command(importlib.import_module("benchmarks.evaluation_curve").main)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {torn}: ")


@pytest.mark.parametrize("twice", ["image", "label"])
def test_columns_of_the_same_name(twice, tmp_path):
    file = tmp_path / "train-00000-of-00001.parquet"
    arrays = {"image": pa.array([b"x", b"y"], pa.binary()), "label": pa.array([0, 1])}
    names = ["image", "label", twice]
    pq.write_table(pa.Table.from_arrays([arrays[name] for name in names], names=names), file)
    config = DataConfig(kind="parquet", path=str(tmp_path), image_size=8, num_classes=2)
    message = one_line(lambda: create_source(config, 0), f"{file}: ")
    assert f"2 columns are named '{twice}' (data.{twice}_column)" in message


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_weights_of_every_kind_load_or_are_refused(tmp_path):
    """Tensors as safetensors and as ``.pt``, compressed too; a TorchScript network; Inception's."""
    tensors = {f"t{n}": torch.randn(6, 5, generator=torch.Generator().manual_seed(n)) for n in range(4)}
    pt, compressed, script = tmp_path / "w.pt", tmp_path / "c.pt", tmp_path / "s.pt"
    torch.save(tensors, pt)
    with zipfile.ZipFile(pt) as source, zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    images = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(SmallFeatures(), images, check_trace=False), buffer)
    script.write_bytes(buffer.getvalue())
    safe = tmp_path / "w.safetensors"
    save_file(tensors, safe, metadata={"config": json.dumps(as_plain(CONFIG))})
    readers: dict[Path, Callable[[Path], object]] = {
        pt: lambda path: read_pytorch(path, allow_pickle=False),
        compressed: lambda path: read_pytorch(path, allow_pickle=False),
        script: lambda path: load_custom(str(path)),
        safe: lambda path: load_weights(path, None),
    }
    for path, read in readers.items():
        original, refused = path.read_bytes(), 0
        for seed in range(80):
            path.write_bytes(damages(original, seed))
            message = refusal_of(lambda read=read, path=path: read(path))
            if message:
                assert str(path) in message
                assert "\n" not in message
                refused += 1
        assert refused >= 40, path
    inception = pytest.importorskip("pmf.evaluation.inception", reason="needs torch-fidelity", exc_type=ImportError)
    for seed in range(80):
        pt.write_bytes(damages(original, seed))
        one_line(lambda: inception.load_inception(pt, ALONE), f"{pt}: ")
