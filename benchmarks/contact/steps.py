"""Whole optimizer steps as a run takes them: the trainer's own step on images that are made up."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch._dynamo.utils import counters

from benchmarks.bench_step import resident_memory_peak
from benchmarks.contact.ceilings import BACKENDS, with_backend
from benchmarks.contact.setting import NUM_CLASSES, Measurements, Report, Setting, milliseconds, open_gates
from benchmarks.environment import synchronize
from pmf.config.sections import Config, TrainingConfig
from pmf.config.yaml_file import load_config
from pmf.costs.arithmetic import peak_flops
from pmf.data.codec import to_unit_range
from pmf.data.loader import Batch
from pmf.data.options import DataConfig
from pmf.flow.draws import StandardScalars
from pmf.perceptual.distances import build_distances
from pmf.perceptual.options import PerceptualConfig
from pmf.randomness import Stream, torch_generator
from pmf.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
NO_PERCEPTUAL = PerceptualConfig()
DEFAULTS = Config(data=DataConfig(kind="synthetic"), training=TrainingConfig(max_steps=1))


def run_config(
    setting: Setting, micro_batch: int, *, compiled: bool, perceptual: PerceptualConfig, **training: bool | str
) -> Config:
    """The model's recipe (the defaults if it has none) on made-up images, with nothing but steps in it.

    Args:
        compiled: as by default, where the device is a GPU.
        training: further options of the training section.
    """
    recipe = CONFIGS / f"{setting.model}.yaml"
    config = load_config(recipe, ["data.path=."]) if recipe.exists() else DEFAULTS
    sizes = setting.sizes
    updates: dict[str, dict[str, object]] = {
        "model": {"name": setting.model},
        "data": {
            "kind": "synthetic",
            "path": None,
            "image_size": setting.image_size,
            "num_classes": NUM_CLASSES,
            "num_images": sizes.global_batch,
            "num_workers": 0,
        },
        "training": {
            "output_dir": tempfile.mkdtemp(dir=setting.scratch),
            "global_batch_size": sizes.global_batch,
            "micro_batch_size": micro_batch,
            "compile": "auto" if compiled else False,
            **training,
            "max_steps": 10**9,
            "epochs": None,
            "keep_checkpoints": 1,
        },
        "evaluation": {"every_images": 0},
    }
    sections = {section: getattr(config, section).model_copy(update=new) for section, new in updates.items()}
    return config.model_copy(update={**sections, "perceptual": perceptual})


def random_perceptual(setting: Setting) -> PerceptualConfig:
    """Both perceptual networks, with files of random weights: what they hold does not change the time."""
    sizes = setting.sizes
    wanted = PerceptualConfig(lpips=True, convnext=True, convnext_model=sizes.convnext, crop_size=sizes.crop)
    distances = build_distances(wanted)
    assert distances is not None, "two were asked for"
    files = {}
    for name, network in distances.networks.items():
        weights = {key.removeprefix("network."): tensor for key, tensor in network.state_dict().items()}
        files[f"{name}_weights"] = [str(setting.scratch / f"random_{name}.safetensors")]
        save_file(weights, files[f"{name}_weights"][0])
    return wanted.model_copy(update=files)


class Run:
    """A trainer and the made-up batches of its steps, in page-locked memory as the loader's are."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.trainer = Trainer(config, resume="never")
        open_gates(self.trainer.state.network)  # type: ignore[arg-type]
        self.device = self.trainer.world.device
        self.micro_batch = self.trainer.micro_batch_size
        data, generator = config.data, torch.Generator().manual_seed(0)
        self.batches = []
        for _ in range(self.trainer.accumulation):
            shape = (self.micro_batch, data.channels, data.image_size, data.image_size)
            images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            labels = torch.randint(data.num_classes, (self.micro_batch,), generator=generator)
            batch = Batch(images, labels, torch.arange(self.micro_batch), 0)
            self.batches.append(batch.pin_memory() if self.device.type == "cuda" else batch)

    def step(self, number: int) -> None:
        """Optimizer step ``number``: its draws are a function of it."""
        self.trainer.train_step([replace(batch, step=number) for batch in self.batches])

    def dealt_rows(self, number: int) -> list[StandardScalars]:
        """The scalar draws of the micro-batches of a step."""
        count = self.trainer.accumulation
        generator = torch_generator(Stream.DRAWS, self.config.training.seed, number)
        objective = self.trainer.train_step.objective
        return objective.draw_rows(self.config.training.global_batch_size, count, range(count), generator)

    def row_counts(self, number: int) -> list[tuple[int, int]]:
        """Rows with v_u and rows under the perceptual losses, of each micro-batch of a step."""
        counts = []
        for scalars in self.dealt_rows(number):
            images = torch.zeros(self.micro_batch, 0, 0, 0)
            draws = self.trainer.train_step.objective.draw(images, torch.Generator(), scalars)
            counts.append((len(draws.unconditional_rows), len(draws.perceptual_rows)))
        return counts

    def micro_batch_call(self, number: int) -> Callable[[], None]:
        """Forward and backward of the first micro-batch of a step, its images on the device already."""
        batch = self.batches[0]
        images, labels = to_unit_range(batch.images.to(self.device)), batch.labels.to(self.device)
        generator = torch.Generator().manual_seed(0)
        draws = self.trainer.train_step.objective.draw(images, generator, self.dealt_rows(number)[0])

        def call() -> None:
            self.trainer.train_step.module(images, labels, draws).total.backward()

        return call

    def optimizer_call(self) -> Callable[[], None]:
        """The optimizer's step and the averages, recorded if the config says so, on the gradients that are there."""
        update, images = self.trainer.train_step.update, self.config.training.global_batch_size
        norm = torch.ones((), device=self.device)

        def call() -> None:
            update(norm, 1.0, images_seen=images, images_per_step=images)

        return call

    def peak_memory(self) -> dict[str, float]:
        """GiB: of a GPU what tensors took and what the allocator held; of a CPU what the process has resident."""
        if self.device.type != "cuda":
            return {"peak_gib": resident_memory_peak() / 2**20}
        return {
            "peak_gib": torch.cuda.max_memory_allocated(self.device) / 2**30,
            "peak_reserved_gib": torch.cuda.max_memory_reserved(self.device) / 2**30,
        }


def measure(
    setting: Setting,
    report: Report,
    *,
    micro_batch: int,
    compiled: bool = True,
    perceptual: bool = False,
    attention: str = "default",
    **training: bool | str,
) -> None:
    """Time whole steps, dealt as in a run; the timed ones are those of the warm-up, so each row count was seen.

    Args:
        micro_batch: images on a GPU; see :class:`Sizes`.
        attention: a row of BACKENDS, the only one that is used.
        training: further options of the training section.
    """
    with with_backend(BACKENDS[attention]):
        config = run_config(
            setting,
            setting.micro_batch(micro_batch),
            compiled=compiled,
            perceptual=random_perceptual(setting) if perceptual else NO_PERCEPTUAL,
            **training,
        )
        _measure(setting, report, config)


def _measure(setting: Setting, report: Report, config: Config) -> None:
    report(
        global_batch=setting.sizes.global_batch,
        micro_batch=config.training.micro_batch_size,
        perceptual=None if config.perceptual == NO_PERCEPTUAL else "random weights",
        static_shapes=config.training.static_shapes,
        cuda_graph=config.training.cuda_graph,
    )
    run, device, numbers = Run(config), setting.device, range(setting.sizes.timed_steps)
    compilation = run.trainer.train_step.compilation
    report(compiled=compilation.on, compilation=str(compilation))
    graphs = counters["stats"]["unique_graphs"]
    started = time.perf_counter()
    for number in numbers:
        run.step(number)
        if number == 0:
            synchronize(device)
            report(first_step_s=time.perf_counter() - started)
    synchronize(device)
    counts = sorted({rows for number in numbers for rows in run.row_counts(number)})
    report(warm_up_s=time.perf_counter() - started, unconditional_and_perceptual_rows=counts)

    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = timed_steps(run, numbers)
    report(step_s=seconds)
    step_s = statistics.median(seconds)
    rate = setting.sizes.global_batch / step_s
    peak, flops = peak_flops(run.device), run.trainer.train_step.flops
    assert flops is not None, "pMF's step can be counted, and this is the main rank"
    report(
        images_per_second=rate,
        mfu=flops.total * rate / peak if peak else None,
        gflop_per_image=flops.total / 1e9,
        graphs=counters["stats"]["unique_graphs"] - graphs,
        **run.peak_memory(),
    )
    report(**parts(run, setting, step_s))
    unseen = range(len(numbers), 2 * len(numbers))
    report(unseen_step_s=timed_steps(run, unseen))
    more = {rows for number in unseen for rows in run.row_counts(number)}
    report(unseen_rows=sorted(more.difference(counts)), graphs_in_the_end=counters["stats"]["unique_graphs"] - graphs)


def timed_steps(run: Run, numbers: Iterable[int]) -> list[float]:
    """Seconds of each of these steps."""
    seconds = []
    for number in numbers:
        started = time.perf_counter()
        run.step(number)
        synchronize(run.device.type)
        seconds.append(time.perf_counter() - started)
    return seconds


def parts(run: Run, setting: Setting, step_s: float) -> Measurements:
    """Milliseconds of a micro-batch, of the optimizer with the averages, and of drawing and dealing a step's rows."""
    repeats, device = setting.sizes.repeats, setting.device
    micro_batch = milliseconds(run.micro_batch_call(0), device, repeats=repeats)
    optimizer = milliseconds(run.optimizer_call(), device, repeats=repeats)
    drawing = milliseconds(lambda: run.dealt_rows(0), device, repeats=repeats)["host_ms"]
    return {
        "micro_batch_ms": micro_batch,
        "optimizer_ms": optimizer,
        "optimizer_share": optimizer["device_ms"] / (1e3 * step_s),
        "drawing_host_ms": drawing,
    }
