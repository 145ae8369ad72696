"""What a training set and its evaluation's reference leave out is printed once and stands in the evaluation's JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pmf.config.yaml_file import load_config
from pmf.training.examination import examine
from pmf.training.trainer import Trainer
from tests.launch import ROOT, TINY


def write_images(folder: Path, count: int, ending: str) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number}.{ending}", "JPEG")
    (folder / f"._0.{ending}").write_bytes(b"\0")  # AppleDouble: it would end the run if it were taken for an image


def test_a_run_on_folders_with_other_files_in_them(tmp_path, capsys):
    for name in "ab":
        write_images(tmp_path / "set" / name, 8, "jpg")
    write_images(tmp_path / "reference", 40, "JPG")
    overrides = [
        *("data.kind=imagefolder", f"data.path={tmp_path}/set", "data.num_classes=2", "training.max_steps=1"),
        *("evaluation.every_images=16", "evaluation.num_images=20", f"evaluation.reference={tmp_path}/reference"),
        f"training.output_dir={tmp_path}/run",
    ]
    config = load_config(ROOT / "configs" / "digits.yaml", [*TINY, *overrides])
    of_data = f"{tmp_path}/set: left out are hidden names: 2 (first "
    warnings = [text for verdict, subject, text in examine(config) if (verdict, subject) == ("warning", "data")]
    assert any(text.startswith(of_data) for text in warnings)

    Trainer(config).train()
    printed = capsys.readouterr().out
    of_reference = f"{tmp_path}/reference: left out are hidden names: 1 (first ._0.JPG)"
    assert printed.count(f"warning: {of_data}") == 1
    assert printed.count(f"warning: evaluation.reference: {of_reference}\n") == 1
    record = json.loads((tmp_path / "run" / "evaluation" / "step_00000001.json").read_text())
    assert of_reference in record["warnings"]
    assert record["reference"]["num_images"] == 40
