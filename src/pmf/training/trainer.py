"""The training loop: Accelerate around a loss module, one optimizer step at a time.

Step k of a run is a function of (config, seed, k): its draws and its learning rate are recomputed from k. What does not
follow from k where the batch size has changed on the way is counted: the images trained on, and the place in the data.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from tqdm import tqdm

from pmf.checkpoint.storage import save_checkpoint
from pmf.config.sections import Config, TrainingConfig
from pmf.costs.arithmetic import peak_flops
from pmf.data.loader import create_loader
from pmf.data.order import steps_per_epoch
from pmf.data.place import Place, resumed_place, steps_in_all
from pmf.data.source import Source, create_source, require_first_images
from pmf.distributed.batching import accumulation_steps
from pmf.distributed.world import World, create_accelerator
from pmf.errors import CrossFieldError, Preempted, UserError
from pmf.optim.schedule import learning_rate
from pmf.training.assembly import assemble
from pmf.training.metrics import MetricsLog
from pmf.training.periodic_evaluation import TrainingEvaluation
from pmf.training.preemption import StopRequest
from pmf.training.preflight import require_compiler, require_device, restart_problem
from pmf.training.run_folder import RunFolder
from pmf.training.snapshots import Snapshots
from pmf.training.step import OptimizerStep
from pmf.training.watchdog import Watchdog


class Trainer:
    """One run, from its config to its last checkpoint."""

    def __init__(self, config: Config, *, resume: str = "auto") -> None:
        """Build everything, continue from a checkpoint if there is one.

        Args:
            resume: ``auto`` (the newest intact checkpoint of the run folder, if any), ``never``, or a checkpoint.

        Raises:
            UserError: config, data, hardware and run folder do not fit together.
        """
        training = config.training
        self.config = config
        require_device(training)
        require_compiler(training)
        self.accelerator = start_processes(training)
        self.world = World(
            rank=self.accelerator.process_index,
            size=self.accelerator.num_processes,
            device=self.accelerator.device,
            barrier=self.accelerator.wait_for_everyone,
        )
        if problem := restart_problem():
            self.say(f"warning: {problem}")
        try:
            self.accumulation = accumulation_steps(
                training.global_batch_size, training.micro_batch_size, self.world.size
            )
        except CrossFieldError as error:
            raise UserError(str(error)) from None
        self.micro_batch_size = training.global_batch_size // self.world.size // self.accumulation
        self.source = self.world.main_first(self._open_source)  # one process may have to build the data set
        self.steps_per_epoch = steps_per_epoch(len(self.source), training.global_batch_size)
        # Of a run that begins; one that goes on may have had batches of other sizes, and asks again.
        self.max_steps = self._steps_in_all(Place(num_samples=len(self.source)), 0)
        parts = assemble(
            config,
            self.accelerator,
            self.world,
            micro_batch_size=self.micro_batch_size,
            max_steps=self.max_steps,
            say=self.say,
        )
        self.module, self.optimizer, self.objective = parts.module, parts.optimizer, parts.objective
        self.state, self.flops = parts.state, parts.flops
        self.run_folder = RunFolder(Path(training.output_dir))
        self.stop = StopRequest(self.world)
        self.watchdog = Watchdog(self.world, training.step_timeout)
        self.snapshots = Snapshots(
            config=config, state=self.state, world=self.world, run_folder=self.run_folder, say=self.say, stop=self.stop
        )
        self._lock_run_folder()
        self.evaluation = (
            TrainingEvaluation(config, self.snapshots, self.stop, self.world)
            if config.evaluation.every_images
            else None
        )
        self._start_or_resume(resume)
        self.train_step = OptimizerStep(
            config=config,
            accelerator=self.accelerator,
            world=self.world,
            module=self.module,
            optimizer=self.optimizer,
            objective=self.objective,
            state=self.state,
            stop=self.stop,
            say=self.say,
            accumulation=self.accumulation,
            max_steps=self.max_steps,
        )

    def say(self, message: str) -> None:
        """Print on the main rank, without tearing the progress bar."""
        if self.world.is_main:
            tqdm.write(message)

    def _open_log(self) -> MetricsLog | None:
        if not self.world.is_main:
            return None
        return MetricsLog(self.run_folder.path, self.config, self.state.progress.step, warn=self.say)

    def train(self) -> None:
        """Run to the last step, then write the final samples.

        Raises:
            Preempted: a signal asked to stop; the step is saved.
        """
        with self.stop:
            log = self.world.together(self._open_log)
            try:
                self._run_steps(log)
            finally:
                if log:
                    log.close()
            self.snapshots.write_final()
        self.accelerator.end_training()

    def _run_steps(self, log: MetricsLog | None) -> None:
        training, progress = self.config.training, self.state.progress
        stream = iter(self._batches())
        with tqdm(
            total=self.max_steps,
            initial=progress.step,
            unit="step",
            disable=not self.world.is_main,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ) as bar:
            if self.evaluation and self.evaluation.is_due():  # the last run stopped before or during it
                missing = not self.evaluation.output(progress.step).exists()
                if self.world.gather(missing)[0]:
                    self._evaluate(self.evaluation, log)
            busy, timed_steps = 0.0, 0
            while progress.step < self.max_steps:
                started = time.perf_counter()
                with self.watchdog.watch(progress.step + 1):
                    stopping = self.train_step([next(stream) for _ in range(self.accumulation)])
                busy += time.perf_counter() - started
                timed_steps += 1
                bar.update()
                if progress.step % training.log_every == 0 or progress.step == self.max_steps:
                    metrics = self._window_metrics(images_per_second=timed_steps * training.global_batch_size / busy)
                    busy, timed_steps = 0.0, 0
                    shown = (key for key in ("loss_u", "lr", "images_per_second") if key in metrics)
                    bar.set_postfix({key: f"{metrics[key]:.4g}" for key in shown})
                    if log:
                        log.write(metrics)
                if stopping or progress.step % training.checkpoint_every == 0 or progress.step == self.max_steps:
                    self.save()
                if stopping:
                    self._leave()
                if self.evaluation and self.evaluation.is_due():
                    self._evaluate(self.evaluation, log)
                if training.sample_every and progress.step % training.sample_every == 0:
                    self.snapshots.save_grid(f"step_{progress.step:08d}.png")

    def _evaluate(self, evaluation: TrainingEvaluation, log: MetricsLog | None) -> None:
        step = self.state.progress.step
        try:
            scores = evaluation.run(step)
        except Preempted:
            self.save()
            self._leave()
        if log and scores:
            self.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
            log.write({"step": step, "images": self.state.progress.images, **scores})

    def _leave(self) -> NoReturn:
        if self.world.is_main:
            self.run_folder.mark_preempted(self.state.progress.step)
        raise Preempted(
            f"asked to stop: step {self.state.progress.step} of {self.max_steps} is saved in {self.run_folder.path}; "
            "start the same command again to go on"
        )

    def save(self) -> None:
        """Write a checkpoint; called by all ranks.

        Raises:
            UserError: it cannot be written.
        """
        self.state.progress.window_sums = self._mean_over_ranks(self.state.progress.window_sums)
        self.state.progress.place = asdict(self._place())
        checkpoint = self.state.to_checkpoint(self.config, self.world.size)
        problem = None
        if self.world.is_main:
            try:
                save_checkpoint(self.run_folder.path, checkpoint, keep=self.config.training.keep_checkpoints)
            except UserError as error:
                problem = str(error)
        self.world.raise_together(problem)  # and none goes on before the checkpoint is there

    def _batches(self) -> Any:
        training, step = self.config.training, self.state.progress.step
        return create_loader(
            self.source,
            self.config.data,
            seed=training.seed,
            global_batch_size=training.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            start_step=step,
            num_steps=self.max_steps - step,
            place=self._place(),
            warn=tqdm.write,
        )

    def _place(self) -> Place:
        """In the data, as of the last step."""
        steps = self.state.progress.step - self._first_step
        return self._first_place.after(steps, self.config.training.global_batch_size)

    def _find_place(self) -> None:
        """Where in the data this start begins, and with which step the run ends."""
        progress = self.state.progress
        self._first_step = progress.step
        self._first_place = resumed_place(progress.place, progress.step, progress.last_images, len(self.source))
        self.max_steps = self._steps_in_all(self._first_place, progress.step)
        learning_rate(self.config.optimizer, 0, self.max_steps)  # a schedule that does not fit is an error now

    def _steps_in_all(self, place: Place, step: int) -> int:
        training = self.config.training
        return steps_in_all(
            place,
            step,
            global_batch_size=training.global_batch_size,
            max_steps=training.max_steps,
            epochs=training.epochs,
        )

    def _open_source(self) -> Source:
        source = create_source(self.config.data, self.config.training.seed)
        for warning in source.warnings:
            self.say(f"warning: {warning}")
        require_first_images(source)
        return source

    def _window_metrics(self, images_per_second: float) -> dict[str, float]:
        """Means over the steps since the last line and over ranks; called by all ranks."""
        progress = self.state.progress
        sums = self._mean_over_ranks(progress.window_sums)
        steps = max(progress.window_steps, 1)
        metrics = {
            "step": progress.step,
            "images": progress.images,
            "epoch": self._place().passes(self.config.training.global_batch_size),
            **{name: value / steps for name, value in sums.items()},
            "lr": self.optimizer.param_groups[0]["lr"],
            "skipped": progress.skipped,
            "spikes": progress.spikes,
            "images_per_second": images_per_second,
        }
        if self.state.scaler is not None:
            metrics["loss_scale"] = self.state.scaler.get_scale()
        if self.world.device.type == "cuda":
            metrics["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        peak = peak_flops(self.world.device)
        if peak is not None and self.config.training.mixed_precision != "no":
            metrics["mfu"] = self.flops.total * images_per_second / (peak * self.world.size)
        progress.start_window()
        return metrics

    def _mean_over_ranks(self, sums: dict[str, float]) -> dict[str, float]:
        if self.world.size == 1 or not sums:
            return dict(sums)
        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.world.device)
        return dict(zip(sums, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def _lock_run_folder(self) -> None:
        """Keep others out of the run folder until this process ends."""
        self.world.ask_main(lambda: self.run_folder.lock(self.say))

    def _prepare_run_folder(self, step: int) -> None:
        self.run_folder.set_aside_after(step, self.say)
        self.run_folder.open(self.config, device=str(self.world.device), world_size=self.world.size)
        if self.run_folder.clear_preempted():
            self.say("this run had been asked to stop, and goes on")

    def _start_or_resume(self, resume: str) -> None:
        training = self.config.training
        path = self.world.ask_main(lambda: self.run_folder.resume_point(resume, self.say))
        saved = None
        if path is not None:
            saved = self.world.together(lambda: self.state.restore(path))
        self._find_place()
        step = self.state.progress.step
        if saved is not None:
            self.say(f"resuming from {path} (step {step} of {self.max_steps})")
            for line in self.run_folder.changes(saved, self.config):
                self.say(f"changed since that checkpoint: {line}")
            if step == self.max_steps:
                self.say("this run is finished; to train on, raise training.max_steps or training.epochs")
        self.world.ask_main(lambda: self._prepare_run_folder(step))
        parameters = sum(p.numel() for p in self.state.network.parameters())
        self.say(
            f"world: {self.world.size} process(es) on {self.world.device.type}; batch {training.global_batch_size} = "
            f"{self.micro_batch_size} x {self.accumulation} accumulation x {self.world.size}; "
            f"{len(self.source):,} images, {self.steps_per_epoch} steps an epoch, {self.max_steps} steps in all; "
            f"run folder {self.run_folder.path}"
        )
        self.say(f"{self.config.model.name}: {parameters:,} parameters; a step takes {self.flops}")


def start_processes(training: TrainingConfig) -> Accelerator:
    """Process group, device and precision, which :func:`pmf.training.preflight.require_device` has found possible."""
    return create_accelerator(
        mixed_precision=training.mixed_precision,
        group_timeout=training.group_timeout,
        tf32=training.tf32,
        num_threads=training.num_threads,
        # With shards the cache would keep copies of all weights that FSDP drops. And with it, the gradients of
        # blocks that the guidance pass runs too, without graph, were wrong by half without a word
        # (tests/test_fsdp.py).
        cache_casts=training.parallel == "ddp",
    )
