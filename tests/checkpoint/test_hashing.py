"""What is read is hashed once, by the main rank; what is not read is not hashed; a sweep reads each average once."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pmf.checkpoint.finding import find_weights
from pmf.checkpoint.places import list_checkpoints
from pmf.errors import UserError
from tests.launch import ROOT, TINY, run_command, train_tiny

FILES = ("model", "optimizer", "ema_0.05", "ema_10")
TWO_STEPS = ("training.max_steps=2", "training.checkpoint_every=1")


class Means(torch.nn.Module):
    """Features of the digits: the means of their rows."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(3).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``run`` with checkpoints of steps 1 and 2, an extractor as TorchScript, and statistics of its features."""
    folder = tmp_path_factory.mktemp("hashing")
    train_tiny(folder / "run", *TWO_STEPS)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have its newer formats
        torch.jit.trace(Means(), images, check_trace=False).save(str(folder / "means.pt"))
    np.savez(folder / "statistics.npz", mu=np.full(8, 100.0), sigma=np.eye(8))
    return folder


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def counted(tmp_path: Path, ranks: int, *command: object) -> tuple[str, dict[str, Counter[str]], int]:
    """Runs a command; returns what it printed, how often each rank did what to which file, and the bytes hashed."""
    notes = tmp_path / "notes"
    notes.unlink(missing_ok=True)
    result = run_command("tests/counting_worker.py", str(notes), *map(str, command), ranks=ranks)
    assert result.returncode == 0, result.stderr
    counts: dict[str, Counter[str]] = {}
    hashed = 0
    for line in notes.read_text().splitlines():
        kind, rank, size, path = line.split(" ", 3)
        counts.setdefault(f"{kind} {rank}", Counter())[Path(path).name] += 1
        hashed += int(size) if kind == "hash" else 0
    return result.stdout + result.stderr, counts, hashed


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resume_hashes_each_file_once_on_the_main_rank(folder, tmp_path, ranks):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    newest = list_checkpoints(run)[-1]
    # Everything is trained already: nothing is saved, which would be hashed too.
    train = ("train.py", "--config", ROOT / "configs" / "digits.yaml", *TINY, *TWO_STEPS)
    printed, counts, hashed = counted(tmp_path, ranks, *train, f"training.output_dir={run}")
    assert "(step 2 of 2)" in printed
    files = Counter([f"{stem}.safetensors" for stem in FILES])
    assert counts.pop("hash 0") == files + Counter(["state.json"])
    assert counts == {f"read {rank}": files for rank in range(ranks)}
    assert hashed == sum(file.stat().st_size for file in newest.iterdir() if file.name != "manifest.json")

    flip(newest / "ema_10.safetensors")  # found at once, and both ranks go to the one before
    printed, counts, _ = counted(
        tmp_path, ranks, *train, f"training.output_dir={run}", "training.max_steps=1", "optimizer.lr=1e-3"
    )
    assert printed.count("ema_10.safetensors does not match its sha256; trying the one before") == 1
    assert "(step 1 of 1)" in printed
    assert max(counts["hash 0"].values()) == 2  # one of each step
    assert "hash 1" not in counts


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_evaluation_hashes_and_reads_only_what_it_uses(folder, tmp_path, ranks):
    run = folder / "run"
    sample = ("eval.py", "sample", "--checkpoint", run, "--num-images", 4, "--output", tmp_path / "images")
    _, counts, hashed = counted(tmp_path, ranks, *sample)
    assert counts.pop("hash 0") == {"ema_10.safetensors": 1, "state.json": 1}
    each = {"read": {"ema_10.safetensors": 1}, "build": {"-": 1}}
    assert counts == {f"{kind} {rank}": count for kind, count in each.items() for rank in range(ranks)}
    newest = list_checkpoints(run)[-1]
    assert hashed == sum((newest / name).stat().st_size for name in ("ema_10.safetensors", "state.json"))

    sweep = ("eval.py", "sweep", "--checkpoint", run, "--num-images", 10, "--batch-size", 5)
    grid = ("--omega", 1, 2, 3, "--num-steps", 1, 2, "--ema", "online", "10", "--output", tmp_path / "sweep")
    features = ("--extractor", folder / "means.pt", "--reference", folder / "statistics.npz")
    _, counts, _ = counted(tmp_path, ranks, *sweep, *grid, *features)
    weights = {"model.safetensors": 1, "ema_10.safetensors": 1}
    assert counts.pop("hash 0") == {**weights, "means.pt": 1, "statistics.npz": 1}
    each = {"read": weights, "build": {"-": 1}}
    assert counts == {f"{kind} {rank}": count for kind, count in each.items() for rank in range(ranks)}
    points = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("point_*.json"))]
    assert [point["images"]["ema"] for point in points] == ["online"] * 6 + ["10"] * 6
    # The network that they share holds the weights that each point names.
    fid = ("eval.py", "fid", "--checkpoint", run, "--num-images", 10, "--batch-size", 5, *features)
    for number in (5, 11):
        settings = ("--omega", 3, "--num-steps", 2, "--ema", points[number]["images"]["ema"])
        counted(tmp_path, 1, *fid, *settings, "--output", tmp_path / "alone.json")
        alone = json.loads((tmp_path / "alone.json").read_text())
        assert alone["images"]["weights"] == points[number]["images"]["weights"]
        assert alone["fid"] == pytest.approx(points[number]["fid"], rel=1e-9)  # sums in another order


@pytest.mark.parametrize("damaged", [*(f"{stem}.safetensors" for stem in FILES), "state.json", "manifest.json"])
def test_damage_counts_where_a_file_is_read(folder, tmp_path, damaged, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    older, newest = list_checkpoints(run)
    flip(newest / damaged)
    for wanted, names in (
        ([None], {"state.json", "ema_10.safetensors"}),
        (["online"], {"model.safetensors"}),
        (["0.05", "online"], {"ema_0.05.safetensors", "model.safetensors"}),
    ):
        found = find_weights(run, wanted)
        affected = damaged in names | {"manifest.json"}
        assert [file.path.parent for file in found] == [older if affected else newest] * len(wanted)
        assert capsys.readouterr().out.count("trying the one before") == affected
        if affected and damaged != "manifest.json":
            with pytest.raises(UserError, match=rf"{newest}: {damaged} does not match its sha256; give another"):
                find_weights(newest, wanted)
            if wanted == ["online"]:
                with pytest.raises(UserError, match=r"model\.safetensors does not match its sha256"):
                    find_weights(newest / "model.safetensors", [None])
