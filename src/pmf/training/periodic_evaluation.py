"""FID while training goes on: all ranks sample and measure, and the training goes on as if they had not.

Nothing here draws from a random stream of the training, and features have precision settings of their own: the trace of
the training is the same bit for bit with evaluation and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pmf.config.sections import Config
from pmf.data.codec import create_codec
from pmf.distributed.world import World
from pmf.errors import NotFiniteError, Preempted
from pmf.evaluation.extractor_table import open_extractor
from pmf.evaluation.meter import Measured, compare
from pmf.evaluation.origin import generated_origin
from pmf.evaluation.record import fidelity_record, write_record
from pmf.evaluation.references import open_reference
from pmf.evaluation.subjects import Subject, measure
from pmf.generation.plan import ImageBatch
from pmf.training.preemption import StopRequest
from pmf.training.snapshots import Snapshots


class TrainingEvaluation:
    """What the config's evaluation section asks for; every method is called by all ranks."""

    def __init__(self, config: Config, snapshots: Snapshots, stop: StopRequest, world: World) -> None:
        """Open the extractor and measure the reference, before training starts.

        Raises:
            UserError: weights or reference are missing or do not fit the images.
        """
        evaluation = config.evaluation
        assert evaluation.reference is not None, "checked by the config"
        self.config = config
        self._snapshots = snapshots
        self._stop = stop
        self._world = world
        self._shape = create_codec(config.data).image_shape
        weights = Path(evaluation.extractor_weights) if evaluation.extractor_weights else None
        self._extractor = open_extractor(evaluation.extractor, weights, self._shape, world)
        subject = self._subject(lambda: iter(()), {})
        self._reference = open_reference(evaluation.reference, subject, self._extractor, world, keep_features=False)
        if world.is_main:
            for warning in self._reference.warnings:
                tqdm.write(f"warning: evaluation.reference: {warning}")

    def is_due(self) -> bool:
        """Whether the last step has crossed a multiple of ``evaluation.every_images``."""
        return self._snapshots.state.progress.crossed(self.config.evaluation.every_images)

    def output(self, step: int) -> Path:
        """The JSON of a step's evaluation."""
        return self._snapshots.run_folder.path / "evaluation" / f"step_{step:08d}.json"

    def run(self, step: int) -> dict[str, float]:
        """Sample, measure, write the JSON.

        Weights, images or features that are not finite are told, and the run goes on without this evaluation.

        Returns:
            ``fid`` and, where the extractor has a classifier, ``inception_score``; on the main rank, empty on others.

        Raises:
            Preempted: asked to stop on the way; the evaluation is done again by the next start.
        """
        try:
            return self._run(step)
        except NotFiniteError as error:  # agreed upon by all ranks
            self._snapshots.say(f"warning: step {step} is not evaluated: {error}")
            return {}

    def _run(self, step: int) -> dict[str, float]:
        weights = self._snapshots.weights(everywhere=True)
        maker = self._snapshots.maker(weights)
        plan = self._snapshots.plan(self.config.evaluation.num_images, weights)

        def batches() -> Iterator[ImageBatch]:
            for batch in maker.batches(plan, self._world):
                if self._stop.agreed():
                    raise Preempted(f"stopped while evaluating step {step}")
                yield batch

        origin = generated_origin(plan, self.config, average=self.config.sampling.ema, labels="all")
        subject = self._subject(batches, origin)
        measured = measure(subject, self._extractor, self._world, f"evaluation, step {step}", keep_features=False)
        return self._world.ask_main(lambda: self._record(step, subject, measured))

    def _record(self, step: int, subject: Subject, measured: Measured) -> dict[str, float]:
        """Compare and write the JSON; on the main rank, for which the others wait where no watchdog counts."""
        scores = compare(measured, self._reference.gaussian, kid=False, prc=False)
        record = fidelity_record(
            scores,
            subject=subject,
            measured=measured,
            extractor=self._extractor,
            reference=self._reference,
            world=self._world,
        )
        images = self._snapshots.state.progress.images
        write_record({"step": step, "images_seen": images, **record}, self.output(step))
        found = {"fid": scores.fid}
        if scores.inception_score is not None:
            found["inception_score"] = scores.inception_score.mean
        return found

    def _subject(self, batches: Any, origin: dict[str, Any]) -> Subject:
        num_images, data = self.config.evaluation.num_images, self.config.data
        return Subject(shape=self._shape, num_images=num_images, batches=batches, data=data, origin=origin)
