"""A short run on the device that the trainer takes: checkpoint, resume, precision, compiled blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.flow.filling import Filling
from pmf.training import captured
from pmf.training.trainer import Trainer
from tests.gpu.devices import GPU
from tests.launch import ROOT, TINY

ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the trainer takes the CUDA device")


def config_of(folder: Path, precision: str, *changes: str) -> Config:
    """Four steps on made-up images, which need no data set and no library for one."""
    settings = [
        *TINY,
        "data.kind=synthetic",
        "data.num_workers=0",
        "training.max_steps=4",
        "training.log_every=1",
        "training.checkpoint_every=2",
        f"training.output_dir={folder}",
        f"training.mixed_precision={precision}",
        *changes,
    ]
    return load_config(ROOT / "configs" / "digits.yaml", settings)


def run(folder: Path, precision: str, *changes: str, few_sizes: bool = False) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(config_of(folder, precision, *changes))
    if few_sizes:
        trainer.train_step.objective.filling = Filling(few_sizes=True)
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer


@pytest.mark.parametrize(
    ("device", "changes"),
    [
        pytest.param("cpu", (), marks=ON_CPU),
        pytest.param("cuda", ("training.compile=false",), marks=GPU),
        pytest.param("cuda", ("training.compile=auto",), marks=GPU),
    ],
    ids=["cpu", "cuda", "cuda compiled"],
)
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_two_steps_and_a_resume_are_four_steps(device, changes, precision, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    trainer = run(whole, precision, *changes)
    assert trainer.train_step.compilation.on == ("training.compile=auto" in changes)
    assert trainer.world.device.type == device
    assert (trainer.state.scaler is not None) == (precision == "fp16")
    run(halves, precision, *changes, "training.max_steps=2")
    assert run(halves, precision, *changes).state.progress.step == 4

    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    again = [json.loads(line) for line in (halves / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in again] == [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["skipped"] for line in lines] == [0, 0, 0, 0]
    # To the bit on a CPU. CUDA adds up some gradients in an order that changes, and Muon enlarges what this rounds.
    slack = 0.0 if device == "cpu" else 1e-2
    for ours, theirs in zip(again, lines, strict=True):
        assert ours["loss_u"] == pytest.approx(theirs["loss_u"], rel=slack, abs=0)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=slack, abs=0)
    saved = [load_file(folder / "checkpoints" / "step_00000004" / "model.safetensors") for folder in (whole, halves)]
    for name, weight in saved[0].items():
        torch.testing.assert_close(saved[1][name], weight, rtol=0, atol=slack, msg=name)


@pytest.mark.parametrize("part", ["true", "step"])
@pytest.mark.parametrize("compiled", ["true", "false"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_a_run_by_cuda_graphs_is_the_launched_one_to_the_bit(device, compiled, part, tmp_path, monkeypatch):
    """With sums in a fixed order; two runs that launch the same operations say whether that holds on this device.

    With ``step`` these have rates on the device too, as such are rounded otherwise.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings = ("training.max_steps=12", f"training.compile={compiled}")
    parts = {"launched": part if part == "step" else "false", "graph": part}
    parts["again"] = parts["launched"]
    warmed = ("optimizer.schedule=warmup_constant", "optimizer.warmup_steps=8", "training.gradient_clip=1")
    saved = {}
    try:
        for name, warm_ups in (("launched", 10**9), ("again", 10**9), ("graph", captured.WARM_UPS)):
            monkeypatch.setattr(captured, "WARM_UPS", warm_ups)
            graph = f"training.cuda_graph={parts[name]}"
            trainer = run(tmp_path / name, "bf16", *settings, *warmed, graph, few_sizes=True)
            saved[name] = {key: p.detach().clone() for key, p in trainer.state.network.named_parameters()}
            recorded = [size for size in getattr(trainer.train_step._run, "_sizes", {}).values() if size.replay]
            assert bool(recorded) == (name == "graph")
            of_update = getattr(trainer.train_step.update._captured, "_replay", None)
            assert (of_update is not None) == (name == "graph" and part == "step")
    finally:
        torch.use_deterministic_algorithms(False)
    assert trainer.world.device.type == device
    for key, weight in saved["launched"].items():
        assert torch.equal(saved["again"][key], weight), key
        assert torch.equal(saved["graph"][key], weight), key


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=ON_CPU), pytest.param("cuda", marks=GPU)])
def test_a_loss_scale_that_is_too_large_is_halved_until_it_fits(device, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(config_of(tmp_path / "run", "fp16", "training.max_steps=40"))
    batches = iter(trainer._batches())
    before = {name: p.detach().clone() for name, p in trainer.state.network.named_parameters()}
    progress, optimizer, start = trainer.state.progress, trainer.state.optimizer, 2.0**30
    trainer.state.scaler._lazy_init_scale_growth_tracker(trainer.world.device)
    trainer.state.scaler.update(start)
    while progress.skipped == progress.step:
        assert all(torch.equal(p, before[name]) for name, p in trainer.state.network.named_parameters())
        trainer.train_step([next(batches) for _ in range(trainer.accumulation)])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert trainer.world.device.type == device
    assert progress.skipped > 0
    assert trainer.state.scaler.get_scale() == start / 2**progress.skipped
    assert {group["step"] for group in optimizer.param_groups} == {1}
    moved = [name for name, p in trainer.state.network.named_parameters() if not torch.equal(p, before[name])]
    assert "u_output.linear.weight" in moved
