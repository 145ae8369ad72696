"""Steps that are recorded and replayed: the run is the same to the bit. Stand-ins for CUDA graphs record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.errors import UserError
from pmf.flow.filling import Filling
from pmf.flow.objective import MicroBatch, Objective
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.training import captured
from pmf.training.captured import CapturedMicroBatches
from pmf.training.preflight import require_cuda_graph
from pmf.training.trainer import Trainer
from tests.flow.methods import METHODS
from tests.flow.small_step import inputs, small_network
from tests.launch import NETWORKS, ROOT, TINY
from tests.recorders import Rerunning

STEPS = 6
# What an update is told differs from step to step, and some gradients are clipped.
CHANGING = (
    "training.gradient_clip=0.5",
    "optimizer.schedule=warmup_constant",
    "optimizer.warmup_steps=3",
    "optimizer.weight_decay=0.01",
)
CONFIGS = {"pmf": "digits", "meanflow": "digits_meanflow"}


def config_of(folder: Path, method: str, *changes: str) -> Config:
    """Two micro-batches a step, on made-up images."""
    settings = ["data.kind=synthetic", "data.num_workers=0", "training.log_every=1", "training.checkpoint_every=3"]
    guided = ["objective.guidance_scale=2", "objective.guidance_mixing=0.5", "objective.guidance_interval=[0.3,0.8]"]
    batch = ["training.global_batch_size=16", "training.micro_batch_size=8", f"training.output_dir={folder}"]
    network = f"model.name={NETWORKS[CONFIGS[method]]}"
    overrides = [*TINY, network, *settings, *batch, *(guided if method == "meanflow" else []), *changes]
    return load_config(ROOT / "configs" / f"{CONFIGS[method]}.yaml", overrides)


def train(config: Config, *, poisoned: int = -1) -> Trainer:
    """The run; the noise of micro-batch number ``poisoned`` holds what is no number, so its step is skipped."""
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(config)
    objective = trainer.train_step.objective
    objective.filling, draw, drawn = Filling(few_sizes=True), objective.draw, []

    def drawing(*arguments):
        draws = draw(*arguments)
        if len(drawn) == poisoned:
            draws.e.fill_(torch.nan)
        drawn.append(draws)
        return draws

    objective.draw = drawing
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    place = folder / "checkpoints" / f"step_{STEPS:08d}"
    return {
        f"{file}/{name}": tensor
        for file in ("model", "optimizer", "ema_10")
        for name, tensor in load_file(place / f"{file}.safetensors").items()
    }


@pytest.mark.parametrize(
    ("method", "part"), [("pmf", "true"), ("pmf", "step"), pytest.param("meanflow", "true", marks=pytest.mark.slow)]
)
def test_a_recorded_run_is_the_launched_one_to_the_bit(method, part, recorded, tmp_path, monkeypatch):
    """With passes of several sizes, two micro-batches a step, a step that is skipped, and a resume.

    (After the resume there are too few steps for an update to be replayed; see test_captured_update.py.)
    With ``step`` the run that is launched has rates on the device too, as these are rounded otherwise.
    """
    launched, graph, halves = (tmp_path / name for name in ("launched", "graph", "halves"))
    steps, on = f"training.max_steps={STEPS}", (*CHANGING, f"training.cuda_graph={part}")
    with monkeypatch.context() as patched:
        patched.setattr(captured, "WARM_UPS", 10**9)
        skipping = train(config_of(launched, method, steps, *(on if part == "step" else CHANGING)), poisoned=6)
    assert all(recorder.replays == [] for recorder in (*recorded.micro_batches, *recorded.updates))
    number_launched = len(recorded.micro_batches)
    train(config_of(graph, method, steps, *on), poisoned=6)
    assert skipping.state.progress.skipped == 1
    train(config_of(halves, method, steps.replace(str(STEPS), "3"), *on))
    train(config_of(halves, method, steps, *on), poisoned=0)
    replays = recorded.micro_batches[number_launched].replays
    assert len(replays) >= 2, "passes of one size alone say little"
    assert min(replays) >= 1
    of_updates = [recorder.replays for recorder in recorded.updates[number_launched:]]
    assert of_updates[:1] == ([[STEPS - 1 - captured.WARM_UPS]] if part == "step" else [])
    expected = weights(launched)
    for folder in (graph, halves):
        found = weights(folder)
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    losses = [
        [json.loads(line).get("loss_u") for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (launched, graph, halves)
    ]
    assert len(losses[0]) == STEPS
    assert losses[1] == losses[2] == losses[0]


def recorded_step() -> tuple[CapturedMicroBatches, MicroBatch, torch.nn.Module]:
    images, labels, standard = inputs()
    network, objective = small_network(), METHODS["pmf"].objective(PixelMeanFlowOptions())
    micro_batch = MicroBatch(images=images, labels=labels, draws=objective.shape(standard))

    def run(part: MicroBatch) -> dict[str, torch.Tensor]:
        terms = objective.loss(network, part.images, part.labels, part.draws)
        terms.total.backward()
        return terms.logs

    parameters = list(network.parameters())
    return CapturedMicroBatches(run, parameters, Rerunning(parameters)), micro_batch, network


def test_a_replaced_gradient_is_noticed():
    step, micro_batch, network = recorded_step()
    for _ in range(4):
        step(micro_batch)
    network.class_tokens.grad = network.class_tokens.grad.clone()
    with pytest.raises(RuntimeError, match="a gradient was replaced"):
        step(micro_batch)


def test_logs_of_one_micro_batch_outlive_the_next():
    step, micro_batch, _ = recorded_step()
    logs = [step(micro_batch) for _ in range(3)]
    other = step(replace(micro_batch, images=-micro_batch.images))
    assert float(other["loss_u"]) != float(logs[2]["loss_u"]) == float(logs[0]["loss_u"])


class Other(Objective):
    pass


class Remembering(PixelMeanFlow):
    """Who adds to a method may keep something from step to step, which a graph would go on reading as it was."""


def test_what_cannot_be_recorded_is_refused():
    jvp = METHODS["pmf"].objective(PixelMeanFlowOptions(derivative="jvp"))
    with pytest.raises(UserError, match="du/dt of PixelTransformer is taken by jvp, which is not recorded"):
        jvp.require_recordable(small_network())
    with pytest.raises(UserError, match="the loss Other does not say that it can be recorded"):
        Other().require_recordable(small_network())
    with pytest.raises(UserError, match="the loss Remembering does not say that it can be recorded"):
        Remembering(PixelMeanFlowOptions(), num_classes=5).require_recordable(small_network())
    training = config_of(Path("run"), "pmf", "training.cuda_graph=true").training
    with pytest.raises(UserError, match="which needs a CUDA device, and there is none"):
        require_cuda_graph(training, processes=1)
    with pytest.raises(UserError, match="mixed_precision fp16"):
        config_of(Path("run"), "pmf", "training.cuda_graph=true", "training.mixed_precision=fp16")
    with pytest.raises(UserError, match="takes step or true or false"):
        config_of(Path("run"), "pmf", "training.cuda_graph=update")


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    training = config_of(Path("run"), "pmf", "training.cuda_graph=true").training
    require_cuda_graph(training, processes=1)
    with pytest.raises(UserError, match="which needs a single process, not 2"):
        require_cuda_graph(training, processes=2)
