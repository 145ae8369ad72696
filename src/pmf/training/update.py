"""From gradients to weights and averages: launched operation by operation, or recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pmf.optim.ema import WeightAverages
from pmf.optim.optimizer import RuleOptimizer
from pmf.optim.rates import Rates
from pmf.training.captured import CapturedUpdate, Recorder


class WeightUpdate:
    """Clips the gradients, moves the weights by the optimizer, and lets the averages follow."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: RuleOptimizer,
        averages: WeightAverages,
        *,
        gradient_clip: float | None,
        recorder: Recorder | None,
    ) -> None:
        """Change nothing yet.

        Args:
            gradient_clip: the largest norm that gradients keep, > 0; None keeps all.
            recorder: records the update; None launches its operations every time.
        """
        self._network, self._optimizer, self._averages = network, optimizer, averages
        self._gradient_clip = gradient_clip
        parameters = list(network.parameters())
        self._captured = None if recorder is None else CapturedUpdate(self._run, parameters, recorder)

    def __call__(self, norm: Tensor, norm_value: float, *, images_seen: int, images_per_step: int) -> None:
        """One update by the gradients that are there, whose norm is finite.

        Args:
            norm: of all gradients together, of shape (), on the device.
            norm_value: the same, on the host.
            images_seen: images trained on, those of this step included.
            images_per_step: the global batch.

        Raises:
            UserError: the rule of an average gives it a weight that is not in [0, 1], or the update cannot be recorded.
        """
        rates, of_averages = self._optimizer.next_rates(), self._averages.rates(images_seen, images_per_step)
        if self._captured is None:
            self._run((norm, rates, of_averages))
        else:
            self._captured((norm_value, rates, of_averages))

    def _run(self, numbers: tuple[Tensor, Mapping[str, Rates], Rates]) -> None:
        norm, rates, of_averages = numbers
        if self._gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._network.parameters(), self._gradient_clip, norm)
        self._optimizer.move(rates)
        self._averages.move(self._network, of_averages)
