"""python -m pmf.doctor: one verdict a line, and the same words as training."""

from __future__ import annotations

import sys

import pytest
import torch

from pmf import doctor
from pmf.commands import run_command
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.errors import UserError
from pmf.net.sizes import create_network
from pmf.training.state import checkpoint_bytes
from pmf.training.trainer import Trainer
from tests.launch import ROOT, TINY
from tests.runs import tensors_of

DIGITS = str(ROOT / "configs" / "digits.yaml")


@pytest.fixture
def examine(monkeypatch, capsys):
    """Runs the doctor; returns its exit status and the verdict and text on each subject."""

    def call(*arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
        monkeypatch.setattr(sys, "argv", ["doctor", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_command(doctor.main)
        printed = capsys.readouterr()
        assert printed.err == ""
        lines = [(line[:9].strip(), line[9:21].strip(), line[21:]) for line in printed.out.splitlines()]
        return int(left.value.code or 0), {subject: (verdict, text) for verdict, subject, text in lines}

    return call


def test_a_good_config_passes_and_nothing_is_written(examine, tmp_path):
    status, verdicts = examine(DIGITS, *TINY, f"training.output_dir={tmp_path}/run")
    assert status == 0
    subjects = "config software device compiler batch data schedule model compilation disk images run folder tracker"
    assert " ".join(verdicts) == subjects
    assert {verdict for verdict, _ in verdicts.values()} <= {"ok", "warning"}
    assert verdicts["data"] == ("ok", "1,797 images, 112 steps an epoch; the first images decode")
    assert verdicts["model"] == ("ok", "test_pmf_2, 76,024 parameters")
    assert verdicts["run folder"] == ("ok", f"{tmp_path}/run holds no checkpoint: starting from scratch")
    assert list(tmp_path.iterdir()) == []


BAD = {
    "data": ["data.num_classes=11"],
    "batch": ["training.micro_batch_size=null", "training.global_batch_size=5000"],
    "model": ["data.image_size=9"],
    "compiler": ["training.compile=true"],
    "disk": ["training.keep_checkpoints=1000000000", "training.max_steps=2000000000"],
    "schedule": ["optimizer.schedule=warmup_cosine", "optimizer.warmup_steps=6"],
    "config": ["optimizer.lr=-1"],
}


@pytest.mark.parametrize("case", BAD)
def test_what_training_refuses_is_an_error_in_the_same_words(case, examine, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CC", "no-such-compiler")
    overrides = [*TINY, f"training.output_dir={tmp_path}/run", *BAD[case]]
    with pytest.raises(UserError) as caught:
        Trainer(load_config(DIGITS, overrides))
    status, verdicts = examine(DIGITS, *overrides)
    assert status == 2
    assert ("error", str(caught.value)) in verdicts.values()


def test_a_run_that_could_not_decode_its_images_ends_before_its_first_step(examine, tmp_path):
    latents = tmp_path / "latents"
    latents.mkdir()
    for number in range(8):
        torch.save({"image": torch.rand(8, 2, 2), "label": number}, latents / f"{number:08d}.pt")
    ours = [
        "data.kind=latents",
        f"data.path={latents}",
        "data.image_size=16",
        "data.channels=3",
        "model.name=imf_tiny_2",
    ]
    nowhere = f"data.autoencoder={tmp_path}/nowhere"
    overrides = [*TINY, f"training.output_dir={tmp_path}/run", "training.global_batch_size=8", *ours, nowhere]
    makes_images = [*overrides, "sampling.final_images=1"]
    with pytest.raises(UserError, match=rf"{nowhere.replace('=', ' ')}: there is no such folder") as caught:
        Trainer(load_config(DIGITS, makes_images))
    assert not (tmp_path / "run").exists()
    assert examine(DIGITS, *makes_images)[1]["images"] == ("error", str(caught.value))
    makes_none = [*overrides, "sampling.final_images=0", "training.sample_every=0", "evaluation.every_images=0"]
    assert examine(DIGITS, *makes_none)[1]["images"] == ("ok", "not needed: the run makes no images")


def test_a_run_is_found_and_its_damage_named(examine, tmp_path):
    overrides = [*TINY, f"training.output_dir={tmp_path}/run", "training.max_steps=2", "training.checkpoint_every=1"]
    Trainer(load_config(DIGITS, overrides)).train()
    older, newer = (tmp_path / "run" / "checkpoints" / f"step_0000000{step}" for step in (1, 2))
    assert examine(DIGITS, *overrides)[1]["run folder"] == ("ok", f"{newer}: training would continue here")
    (newer / "model.safetensors").write_bytes(b"")
    status, verdicts = examine(DIGITS, *overrides)
    assert status == 0
    assert verdicts["run folder"] == ("ok", f"{older}: training would continue here")
    (older / "manifest.json").unlink()
    status, verdicts = examine(DIGITS, *overrides)
    assert status == 2
    assert verdicts["run folder"][0] == "error"


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_size_of_a_checkpoint_is_known_from_shapes(optimizer, tmp_path):
    overrides = [*TINY, f"training.output_dir={tmp_path}/run", "training.max_steps=1", f"optimizer.name={optimizer}"]
    config: Config = load_config(DIGITS, overrides)
    with torch.device("meta"):
        network = create_network("test_pmf_2", image_size=8, num_classes=10, channels=1)
    expected = checkpoint_bytes(network, config)
    Trainer(config).train()
    tensors = tensors_of(tmp_path / "run" / "checkpoints" / "step_00000001")
    counted = [tensor for name, tensor in tensors.items() if not name.startswith("optimizer/step/")]  # 8 bytes each
    assert expected == sum(tensor.nbytes for tensor in counted)
    assert len(tensors) - len(counted) == {"muon": 2, "adamw": 1}[optimizer]
