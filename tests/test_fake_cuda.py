"""The whole step on CUDA tensors without contents: mistakes of device and of autocast's dtypes show without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor

from pmf.config.yaml_file import load_config
from pmf.costs.graph_walk import backward, grad
from pmf.costs.simulated_step import AUTOCAST
from pmf.data.codec import create_codec
from pmf.data.loader import Batch
from pmf.distributed.world import World
from pmf.flow.filling import Filling
from pmf.perceptual.distances import PerceptualDistances
from pmf.training import captured
from pmf.training import step as step_module
from pmf.training.captured import Logs, Run
from pmf.training.course import Course
from pmf.training.preemption import StopRequest
from pmf.training.step import TrainingStep
from pmf.training.update import WeightUpdate
from tests.fake_cuda import MixedDevicesError, Trace, fake_cuda
from tests.flow.methods import METHODS
from tests.flow.small_step import in_float32, inputs
from tests.latents import latent_config
from tests.launch import NETWORKS, ROOT, TINY
from tests.perceptual.published import random_convnext, random_lpips

GPU = torch.device("cuda:0")
ACCUMULATION = 2
CONFIGS = {"pmf": "digits", "imf": "digits_imf", "meanflow": "digits_meanflow"}
GUIDED = (
    "objective.guidance_scale=2",
    "objective.guidance_mixing=0.5",
    "objective.guidance_interval=[0.3,0.8]",
)
"""MeanFlow with both of the network's own velocities, on some rows."""
CHECKPOINTED = ("training.activation_checkpointing=true", "training.gradient_clip=1")


@dataclass
class OneGpu:
    """What the trainer asks of Accelerate, for one process on a GPU that Accelerate does not find."""

    precision: str
    scaler: torch.amp.GradScaler | None = None
    optimizer: Any = None

    def prepare_model(self, module: nn.Module, **_: Any) -> nn.Module:
        module.forward = torch.autocast("cuda", AUTOCAST[self.precision])(module.forward)
        return module

    def prepare_optimizer(self, optimizer: Any, **_: Any) -> Any:
        self.optimizer = optimizer
        return optimizer

    def no_sync(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale_gradients(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)


@dataclass
class Done:
    """One step, and the gradients that the optimizer saw."""

    step: TrainingStep
    trace: Trace
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    drawn: list[tuple[int, int]] = field(default_factory=list)
    """Steps whose scalars were drawn, and waits before."""


def take_step(
    precision: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *changes: str,
    method: str = "pmf",
    perceptual: bool = False,
    tamper: Callable[[TrainingStep], None] = lambda step: None,
) -> Done:
    """uint8 images to draws, guidance, loss, gradients, their norm, weights and averages."""
    settings = ["data.image_size=32", "objective.derivative=dual", f"model.name={NETWORKS[CONFIGS[method]]}"]
    overrides = [*TINY, f"training.output_dir={folder}", *settings, *changes]
    config = load_config(ROOT / "configs" / f"{CONFIGS[method]}.yaml", overrides)
    world = World(rank=0, size=1, device=GPU, barrier=lambda: None)
    monkeypatch.setattr(step_module, "step_flops", lambda *_: None)  # it simulates a device of its own
    with fake_cuda(monkeypatch) as trace:
        accelerator = OneGpu(precision, torch.amp.GradScaler("cuda") if precision == "fp16" else None)
        step = TrainingStep(
            config,
            accelerator,
            world,
            Course(config, num_samples=1797),
            accumulation=ACCUMULATION,
            stop=StopRequest(world),
            say=print,
        )
        if perceptual:
            networks = {"lpips": random_lpips(), "convnext": random_convnext()}
            for network in networks.values():
                network.requires_grad_(False).to(GPU)
            step.objective.perceptual = PerceptualDistances(networks, {"lpips": 0.4, "convnext": 0.1}, 32)
        step.trace = trace
        tamper(step)
        done, move = Done(step, trace), step.state.optimizer.move

        def spy(rates: Any) -> None:
            done.gradients.update({name: p.grad for name, p in step.state.network.named_parameters()})
            move(rates)

        draw_rows = step._draw_rows

        def draw(number: int) -> list[Any]:
            done.drawn.append((number, trace.waits))
            return draw_rows(number)

        step._draw_rows = draw
        step.state.optimizer.move = spy
        trace.blocking = trace.copies = trace.pageable = 0  # weights may be
        step([batch() for _ in range(ACCUMULATION)])
    return done


def batch() -> Batch:
    generator = torch.default_generator
    images = torch.randint(256, (8, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.randint(10, (8,), generator=generator), torch.arange(8), step=0)


def placed(tensors: dict[str, Tensor | None]) -> set[tuple[type, torch.device | None, torch.dtype | None]]:
    return {(type(t), None, None) if t is None else (type(t), t.device, t.dtype) for t in tensors.values()}


def dtypes_of_products(trace: Trace) -> dict[str, set[torch.dtype]]:
    """By operation. Batched products are left out: without a GPU attention is written out, and partly in float32."""
    names = {name for name, _ in trace.products} - {"bmm"}
    return {name: {dtype for other, dtype in trace.products if other == name} for name in names}


ON_GPU = {(FakeTensor, GPU, torch.float32)}


@pytest.mark.parametrize(
    ("method", "precision", "changes"),
    [
        ("pmf", "bf16", ()),
        ("pmf", "fp16", CHECKPOINTED),
        ("imf", "bf16", ()),
        ("imf", "fp16", CHECKPOINTED),
        ("meanflow", "bf16", GUIDED),
        ("meanflow", "fp16", (*GUIDED, *CHECKPOINTED)),
        ("meanflow", "bf16", (*GUIDED, "training.static_shapes=true")),
    ],
)
def test_a_step_stays_on_the_gpu_and_waits_once(method, precision, changes, tmp_path, monkeypatch):
    done = take_step(precision, tmp_path, monkeypatch, *changes, method=method)
    state, half = done.step.state, AUTOCAST[precision]
    assert done.gradients.keys() == dict(state.network.named_parameters()).keys()
    assert placed(done.gradients) == ON_GPU
    for name in state.averages.names:
        assert placed(state.averages.state(name)) == ON_GPU
    moments = {k: v for k, v in state.optimizer.named_state(state.network).items() if not k.startswith("step/")}
    assert placed(moments) == ON_GPU
    assert {group["step"] for group in state.optimizer.param_groups} == {1}
    assert state.progress.step == 1
    assert (done.trace.waits, done.trace.blocking) == (1, 0)
    assert done.drawn == [(0, 0), (1, 0)], "the next step's scalars are drawn before the wait"
    # Images, labels and what else was drawn; the loader pins the first two, which this test does not.
    assert (done.trace.copies, done.trace.pageable) == (3 * ACCUMULATION, 2 * ACCUMULATION)
    assert dtypes_of_products(done.trace) == {
        "mm": {half},
        "addmm": {half},
        "convolution": {half},
        "baddbmm": {torch.bfloat16},  # Muon's
        "attention_tangent": {half},
    }


def test_perceptual_networks_run_in_half_precision_too(tmp_path, monkeypatch):
    done = take_step("fp16", tmp_path, monkeypatch, perceptual=True)
    assert placed(done.gradients) == ON_GPU
    assert done.trace.waits == 1
    assert dtypes_of_products(done.trace)["convolution"] == {torch.float16}
    assert dtypes_of_products(done.trace)["addmm"] == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_latents_are_drawn_without_standing_still(dtype, tmp_path, monkeypatch):
    codec = create_codec(latent_config(tmp_path, tmp_path))
    with fake_cuda(monkeypatch) as trace:
        moments = torch.rand(6, 8, 4, 4, dtype=dtype).to(GPU, non_blocking=True)
        z = codec.encode(moments, torch.default_generator)
        assert placed({"z": z}) == ON_GPU
        assert (trace.waits, trace.blocking) == (0, 0)
        z + torch.ones(4, 1, 1).to(GPU)
        assert trace.blocking == 1, "it would be noticed"


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "no"])
@pytest.mark.parametrize("method", METHODS)
def test_the_engine_that_stands_in_for_torchs_gives_its_gradients(method, precision, checkpointed, monkeypatch):
    images, labels, standard = inputs()
    chosen = METHODS[method]
    objective = chosen.objective(chosen.options(derivative="dual"))
    draws = in_float32(objective.shape(standard))
    networks = [chosen.network().float() for _ in range(2)]
    for network, run in zip(networks, (Tensor.backward, backward), strict=True):
        if checkpointed:
            network.checkpoint_blocks()
        if run is backward:
            monkeypatch.setattr(torch.autograd, "grad", grad)
        with torch.autocast("cpu", AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            run(objective.loss(network, images.float(), labels, draws).total)
    for (name, theirs), ours in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        # The same operations, sums of branches in another order.
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=2e-2 if precision == "bf16" else 1e-4, atol=1e-6, msg=name
        )


def in_loss(change: Callable[[Tensor], Any]) -> Callable[[TrainingStep], None]:
    """Something that happens to z where the loss begins."""

    def tamper(step: TrainingStep) -> None:
        original = step.objective.parameterization.true_velocity

        def changed(x: Tensor, e: Tensor, z: Tensor, t: Tensor) -> Tensor:
            change(z)
            return original(x, e, z, t)

        step.objective.parameterization.true_velocity = changed

    return tamper


@dataclass
class Watching:
    """In place of CUDA graphs: what a recording would hold and a graph must not: copies from the host, waits, draws."""

    trace: Trace
    found: list[dict[str, int]] = field(default_factory=list)

    def warm_up(self, run: Run) -> Logs:
        return run()

    def record(self, run: Run) -> tuple[Logs, Callable[[], None]]:
        names = ("copies", "waits", "random")
        before = {name: getattr(self.trace, name) for name in names}
        logs = run()
        self.found.append({name: getattr(self.trace, name) - before[name] for name in names})
        return logs, lambda: None


def watch(monkeypatch: pytest.MonkeyPatch, found: list[dict[str, int]]) -> Callable[[TrainingStep], None]:
    """The second micro-batch is recorded."""
    monkeypatch.setattr(captured, "WARM_UPS", 1)

    def tamper(step: TrainingStep) -> None:
        trace = step.trace
        step.objective.filling = Filling(static_shapes=True, few_sizes=True)
        step._run = captured.CapturedMicroBatches(
            step._forward_and_backward, list(step.state.network.parameters()), Watching(trace, found)
        )

    return tamper


@pytest.mark.parametrize(
    "method", ["pmf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("imf", "meanflow"))]
)
def test_a_recorded_micro_batch_neither_copies_nor_waits_nor_draws(method, tmp_path, monkeypatch):
    found: list[dict[str, int]] = []
    changes = GUIDED if method == "meanflow" else ()
    done = take_step("bf16", tmp_path, monkeypatch, *changes, method=method, tamper=watch(monkeypatch, found))
    assert found == [{"copies": 0, "waits": 0, "random": 0}]
    assert placed(done.gradients) == ON_GPU
    assert done.trace.copies == 3 * ACCUMULATION


def record_update(monkeypatch: pytest.MonkeyPatch, found: list[dict[str, int]]) -> Callable[[TrainingStep], None]:
    """The first update is recorded."""
    monkeypatch.setattr(captured, "WARM_UPS", 0)

    def tamper(step: TrainingStep) -> None:
        state, recorder = step.state, Watching(step.trace, found)
        step.update = WeightUpdate(state.network, state.optimizer, state.averages, gradient_clip=1.0, recorder=recorder)

    return tamper


def test_a_recorded_update_neither_copies_nor_waits_nor_draws(tmp_path, monkeypatch):
    found: list[dict[str, int]] = []
    changes = ("optimizer.weight_decay=0.1", "ema.decays=[0.9]")
    done = take_step("bf16", tmp_path, monkeypatch, *changes, tamper=record_update(monkeypatch, found))
    assert found == [{"copies": 0, "waits": 0, "random": 0}]
    assert placed(done.gradients) == ON_GPU
    # Beside those of the micro-batches one, of the update's numbers, from page-locked memory; nothing waits for it.
    assert (done.trace.copies, done.trace.pageable) == (3 * ACCUMULATION + 1, 2 * ACCUMULATION)
    assert (done.trace.waits, done.trace.blocking) == (1, 0)


def test_it_notices_what_a_recorded_update_must_not_do(tmp_path, monkeypatch):
    found: list[dict[str, int]] = []

    def tamper(step: TrainingStep) -> None:
        record_update(monkeypatch, found)(step)
        move = step.state.averages.move

        def changed(network: nn.Module, rates: dict[str, Tensor]) -> None:
            move(network, {name: torch.tensor(rate.tolist()).to(GPU) for name, rate in rates.items()})

        step.state.averages.move = changed

    take_step("bf16", tmp_path, monkeypatch, "ema.half_lives_kimg=[10]", tamper=tamper)
    assert found == [{"copies": 1, "waits": 1, "random": 0}]


def test_it_notices_what_a_graph_must_not_hold(tmp_path, monkeypatch):
    found: list[dict[str, int]] = []

    def change(z: Tensor) -> None:
        z + torch.ones(32).to(GPU, non_blocking=True)
        z[0].tolist()
        torch.randn_like(z)

    def tamper(step: TrainingStep) -> None:
        watch(monkeypatch, found)(step)
        in_loss(change)(step)

    take_step("bf16", tmp_path, monkeypatch, tamper=tamper)
    assert found == [{"copies": 1, "waits": 1, "random": 1}]


def buffer_on_cpu(step: TrainingStep) -> None:
    step.state.network.rotation.cos = torch.ones(step.state.network.rotation.cos.shape)


@pytest.mark.parametrize(
    ("tamper", "error"),
    [
        (in_loss(lambda z: z.max().item()), DataDependentOutputException),
        (in_loss(lambda z: bool((z > 0).all())), DataDependentOutputException),
        (in_loss(lambda z: (z > 0).nonzero()), DynamicOutputShapeException),
        (in_loss(lambda z: z.cpu()), MixedDevicesError),
        (in_loss(lambda z: torch.zeros(z.shape).copy_(z)), MixedDevicesError),
        (in_loss(lambda z: z[torch.arange(2)]), MixedDevicesError),
        (in_loss(lambda z: z + torch.ones(32)), MixedDevicesError),
        (buffer_on_cpu, MixedDevicesError),
    ],
    ids=["item", "bool", "nonzero", "cpu", "copy", "index", "sum", "buffer"],
)
def test_it_notices_what_leaves_the_gpu(tamper, error, tmp_path, monkeypatch):
    with pytest.raises(error):
        take_step("bf16", tmp_path, monkeypatch, tamper=tamper)


def test_it_notices_a_product_outside_autocast(tmp_path, monkeypatch):
    def product(z: Tensor) -> None:
        with torch.autocast("cuda", enabled=False):
            z.flatten(1) @ z.flatten(1).mT

    trace = take_step("bf16", tmp_path, monkeypatch, tamper=in_loss(product)).trace
    assert dtypes_of_products(trace)["mm"] == {torch.bfloat16, torch.float32}


def test_it_notices_a_second_wait_and_a_missing_gradient(tmp_path, monkeypatch):
    def tamper(step: TrainingStep) -> None:
        in_loss(lambda z: z[0].tolist())(step)
        step.state.network.class_tokens.requires_grad_(False)

    done = take_step("bf16", tmp_path, monkeypatch, tamper=tamper)
    assert done.trace.waits == 1 + ACCUMULATION
    assert done.gradients["class_tokens"] is None
