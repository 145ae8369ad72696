"""Damaged checkpoints: passed over aloud by ``--resume auto``, refused when named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pmf.checkpoint.integrity import find_resumable
from pmf.checkpoint.places import list_checkpoints
from pmf.errors import UserError
from tests.checkpoint.loading import load_checkpoint
from tests.faults.processes import EVERY_FOUR, cut_back, finish, trace

FILES = ("model", "optimizer", "ema_0.05", "ema_10")


def cut(share: float) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def zero_tail(file: Path) -> None:
    """What a file system may show after a power cut."""
    content = file.read_bytes()
    start = len(content) * 9 // 10
    file.write_bytes(content[:start] + bytes(len(content) - start))


DAMAGES = {
    "empty": cut(0),
    "4 %": cut(0.04),
    "half": cut(0.5),
    "99 %": cut(0.99),
    "a bit": flip,
    "zeros": zero_tail,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_of_a_checkpoint(damage, whole, tmp_path):
    names = [f"{stem}.safetensors" for stem in FILES] + ["state.json", "manifest.json"]
    original = whole(1)
    assert sorted(path.name for path in list_checkpoints(original)[-1].iterdir()) == sorted(names)
    for name in names:
        run = tmp_path / name
        shutil.copytree(original, run)
        older, newest = list_checkpoints(run)[-2:]
        DAMAGES[damage](newest / name)
        warnings: list[str] = []
        assert find_resumable(run, warnings.append) == older, name
        assert len(warnings) == 1
        assert warnings[0].startswith(f"{newest}: ")
        assert warnings[0].endswith("; trying the one before")
        with pytest.raises(UserError) as refused:
            load_checkpoint(newest)
        assert str(refused.value).startswith(f"{newest}: ")
        assert "\n" not in str(refused.value)
        shutil.rmtree(run)


def test_every_bit_of_a_manifest(whole, tmp_path):
    """The only file that no hash protects: each of its bytes, changed, is found, and nothing else is raised."""
    run = tmp_path / "run"
    shutil.copytree(whole(1), run)
    newest = list_checkpoints(run)[-1]
    manifest = newest / "manifest.json"
    content = manifest.read_bytes()
    missed = []
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 4
        manifest.write_bytes(changed)
        if find_resumable(run, lambda _: None) == newest:
            missed.append(bytes(content[place : place + 1]))
    assert set(missed) <= {b"\n", b" "}  # white space between the values may change into other white space
    manifest.write_bytes(content)
    assert find_resumable(run, lambda _: None) == newest


def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(whole, tmp_path):
    run = cut_back(whole(1), tmp_path / "run", 8)
    flip(run / "checkpoints" / "step_00000008" / "optimizer.safetensors")
    printed = finish(run, EVERY_FOUR)
    assert f"warning: {run}/checkpoints/step_00000008: optimizer.safetensors does not match its sha256" in printed
    assert "(step 4 of 12)" in printed
    assert trace(run) == trace(whole(1))
    (aside,) = (run / "checkpoints").glob("abandoned_*")
    assert aside.name.startswith("abandoned_step_00000008")
