"""How many steps a run takes, and which images each of them gets."""

from __future__ import annotations

from pmf.config.sections import Config
from pmf.data.order import steps_per_epoch
from pmf.data.place import Place, resumed_place, steps_in_all
from pmf.optim.schedule import learning_rate
from pmf.training.state import Progress


class Course:
    """From the first step of this start to the last step of the run.

    Attributes:
        max_steps: steps of the whole run, those before this start included.
        steps_per_epoch: full batches in the data set.
    """

    def __init__(self, config: Config, num_samples: int) -> None:
        """The course of a run that begins.

        Args:
            num_samples: images in the data set.

        Raises:
            UserError: the data set has fewer images than a batch.
        """
        self._config = config
        self._num_samples = num_samples
        self.steps_per_epoch = steps_per_epoch(num_samples, config.training.global_batch_size)
        self._begin(0, Place(num_samples=num_samples))

    def continue_from(self, progress: Progress) -> None:
        """Take the course of a run that has this much behind it; its batches may have had other sizes.

        Raises:
            AgreedError: the run has gone beyond its end already.
            UserError: the learning rate's schedule does not fit the number of steps.
        """
        place = resumed_place(progress.place, progress.step, progress.last_images, self._num_samples)
        self._begin(progress.step, place)
        self.learning_rate(0)  # a schedule that does not fit is an error now

    def place(self, step: int) -> Place:
        """The place in the data after that many steps of the run, none of them before this start."""
        return self._first_place.after(step - self._first_step, self._config.training.global_batch_size)

    def passes(self, step: int) -> float:
        """Passes over the data after that many steps of the run."""
        return self.place(step).passes(self._config.training.global_batch_size)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0.

        Raises:
            UserError: the schedule does not fit the number of steps.
        """
        return learning_rate(self._config.optimizer, step, self.max_steps)

    def _begin(self, step: int, place: Place) -> None:
        training = self._config.training
        self._first_step, self._first_place = step, place
        self.max_steps = steps_in_all(
            place,
            step,
            global_batch_size=training.global_batch_size,
            max_steps=training.max_steps,
            epochs=training.epochs,
        )
