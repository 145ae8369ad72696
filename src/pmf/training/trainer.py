"""The training loop: one step after the other, and what is logged, saved, drawn and measured between them.

Step k of a run is a function of (config, seed, k): its draws and its learning rate are recomputed from k. What does not
follow from k where the batch size has changed on the way is counted: the images trained on, and the place in the data.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pmf.checkpoint.storage import save_checkpoint
from pmf.config.sections import Config, TrainingConfig
from pmf.costs.arithmetic import decoding_summary
from pmf.data.codec import create_codec
from pmf.data.loader import Loader, create_loader
from pmf.data.source import Source, class_names, create_source, require_first_images
from pmf.distributed.batching import accumulation_steps
from pmf.errors import CrossFieldError, Preempted, UserError
from pmf.report.writing import RunReport
from pmf.training.course import Course
from pmf.training.environment import environment_record
from pmf.training.metrics import MetricsLog
from pmf.training.periodic_evaluation import TrainingEvaluation
from pmf.training.preemption import StopRequest
from pmf.training.preflight import (
    require_compiler,
    require_cuda_graph,
    require_decoder,
    require_device,
    require_storage,
    restart_problem,
)
from pmf.training.processes import start_processes, world_of
from pmf.training.run_folder import RunFolder
from pmf.training.snapshots import Snapshots
from pmf.training.state import checkpoint_bytes
from pmf.training.step import TrainingStep
from pmf.training.watchdog import Watchdog
from pmf.training.window import Window


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
        self.world = world_of(self.accelerator)
        require_cuda_graph(training, self.world.size)
        if problem := restart_problem():
            self.say(f"warning: {problem}")
        self.accumulation = _accumulation(training, self.world.size)
        self.micro_batch_size = training.global_batch_size // self.world.size // self.accumulation
        self.source = self.world.main_first(self._open_source)  # one process may have to build the data set
        self.world.main_first(lambda: require_decoder(config))
        self.course = Course(config, len(self.source))
        self.stop = StopRequest(self.world)
        self.train_step = TrainingStep(
            config,
            self.accelerator,
            self.world,
            self.course,
            accumulation=self.accumulation,
            stop=self.stop,
            say=self.say,
        )
        self.state = self.train_step.state
        self.window = Window(training, self.train_step, self.course, self.world)
        require_storage(training, checkpoint_bytes(self.state.network, config), self.course.max_steps)
        self.run_folder = RunFolder(Path(training.output_dir))
        self.report = RunReport(self.run_folder.path, self.say)
        self.watchdog = Watchdog(self.world, training.step_timeout)
        self.snapshots = Snapshots(
            config=config, state=self.state, world=self.world, run_folder=self.run_folder, say=self.say, stop=self.stop
        )
        self.world.ask_main(lambda: self.run_folder.lock(self.say))
        self.evaluation = (
            TrainingEvaluation(config, self.snapshots, self.stop, self.world)
            if config.evaluation.every_images
            else None
        )
        self._start_or_resume(resume)

    def say(self, message: str) -> None:
        """Print on the main rank, without tearing the progress bar."""
        if self.world.is_main:
            tqdm.write(message)

    def train(self) -> None:
        """Run to the last step, then write the final samples.

        Raises:
            Preempted: a signal asked to stop; the step is saved.
        """
        with self.stop:
            log = self.world.together(self._open_log)
            try:
                self._run_steps(log)
                self._show(log, self.snapshots.write_final())
                self.world.ask_main(self.report.end)
            finally:
                if log:
                    log.close()
        self.accelerator.end_training()

    def save(self) -> None:
        """Write a checkpoint; called by all ranks.

        Raises:
            UserError: it cannot be written.
        """
        progress = self.state.progress
        progress.average_window(self.world)
        progress.place = asdict(self.course.place(progress.step))
        checkpoint = self.state.to_checkpoint(self.config, self.world.size, class_names(self.source))
        problem = None
        if self.world.is_main:
            try:
                save_checkpoint(self.run_folder.path, checkpoint, keep=self.config.training.keep_checkpoints)
            except UserError as error:
                problem = str(error)
        self.world.raise_together(problem)  # and none goes on before the checkpoint is there

    def _open_log(self) -> MetricsLog | None:
        if not self.world.is_main:
            return None
        return MetricsLog(self.run_folder.path, self.config, self.state.progress.step, warn=self.say)

    def _run_steps(self, log: MetricsLog | None) -> None:
        training, progress, last = self.config.training, self.state.progress, self.course.max_steps
        stream = iter(self._batches())
        with tqdm(
            total=last,
            initial=progress.step,
            unit="step",
            disable=not self.world.is_main,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ) as bar:
            if self.evaluation and self.evaluation.is_due():  # the last run stopped before or during it
                missing = not self.evaluation.output(progress.step).exists()
                if self.world.gather(missing)[0]:
                    self._evaluate(self.evaluation, log)
                    self._report(evaluated=True)
            while progress.step < last:
                with self.window.timed_step(), self.watchdog.watch(progress.step + 1):
                    stopping = self.train_step([next(stream) for _ in range(self.accumulation)])
                bar.update()
                if progress.step % training.log_every == 0 or progress.step == last:
                    metrics = self.window.close()
                    shown = (key for key in (self.state.objective.shown, "lr", "images_per_second") if key in metrics)
                    bar.set_postfix({key: f"{metrics[key]:.4g}" for key in shown})
                    if log:
                        log.write(metrics)
                if stopping or progress.step % training.checkpoint_every == 0 or progress.step == last:
                    self.save()
                if stopping:
                    self._leave()
                evaluating = self.evaluation is not None and self.evaluation.is_due()
                if self.evaluation and evaluating:
                    self._evaluate(self.evaluation, log)
                if training.sample_every and progress.step % training.sample_every == 0:
                    self._show(log, self.snapshots.save_grid(f"step_{progress.step:08d}.png"))
                if (evaluating or progress.step % training.checkpoint_every == 0) and progress.step < last:
                    self._report(evaluated=evaluating)

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

    def _show(self, log: MetricsLog | None, grid: Path | None) -> None:
        if log and grid:
            log.show_samples(grid, self.state.progress.step)

    def _report(self, *, evaluated: bool) -> None:
        # The others wait here, where no watchdog counts.
        self.world.ask_main(lambda: self.report.write(evaluated=evaluated))

    def _leave(self) -> NoReturn:
        if self.world.is_main:
            self.run_folder.mark_preempted(self.state.progress.step)
        self.world.ask_main(lambda: self.report.end(pictures=False))  # who asked may kill it in seconds
        raise Preempted(
            f"asked to stop: step {self.state.progress.step} of {self.course.max_steps} is saved in "
            f"{self.run_folder.path}; start the same command again to go on"
        )

    def _batches(self) -> Loader:
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
            num_steps=self.course.max_steps - step,
            place=self.course.place(step),
            warn=tqdm.write,
        )

    def _open_source(self) -> Source:
        source = create_source(self.config.data, self.config.training.seed)
        for warning in source.warnings:
            self.say(f"warning: {warning}")
        require_first_images(source)
        return source

    def _prepare_run_folder(self, step: int) -> None:
        self.run_folder.set_aside_after(step, self.say)
        environment = environment_record(
            device=self.world.device.type,  # of several processes on CPUs each has an index, which says nothing
            world_size=self.world.size,
            num_images=len(self.source),
            max_steps=self.course.max_steps,
        )
        self.run_folder.open(self.config, environment)
        if self.run_folder.clear_preempted():
            self.say("this run had been asked to stop, and goes on")

    def _start_or_resume(self, resume: str) -> None:
        path = self.world.ask_main(lambda: self.run_folder.resume_point(resume, self.say))
        saved = None
        if path is not None:
            saved = self.world.together(lambda: self.state.restore(path))
        self.course.continue_from(self.state.progress)
        step, last = self.state.progress.step, self.course.max_steps
        if saved is not None:
            self.say(f"resuming from {path} (step {step} of {last})")
            for line in self.run_folder.changes(saved, self.config):
                self.say(f"changed since that checkpoint: {line}")
            if step == last:
                self.say("this run is finished; to train on, raise training.max_steps or training.epochs")
        self.world.ask_main(lambda: self._prepare_run_folder(step))
        parameters = sum(p.numel() for p in self.state.network.parameters())
        self.say(
            f"world: {self.world.size} process(es) on {self.world.device.type}; "
            f"batch {self.config.training.global_batch_size} = "
            f"{self.micro_batch_size} x {self.accumulation} accumulation x {self.world.size}; "
            f"{len(self.source):,} images, {self.course.steps_per_epoch} steps an epoch, {last} steps in all; "
            f"run folder {self.run_folder.path}"
        )
        counted = f"; a step takes {self.train_step.flops}" if self.train_step.flops else ""
        decoding = decoding_summary(create_codec(self.config.data)) if self.world.is_main else ""
        self.say(f"{self.config.model.name}: {parameters:,} parameters{counted}{decoding}")


def _accumulation(training: TrainingConfig, processes: int) -> int:
    """Micro-batches of one rank in one step."""
    try:
        return accumulation_steps(training.global_batch_size, training.micro_batch_size, processes)
    except CrossFieldError as error:
        raise UserError(str(error)) from None
