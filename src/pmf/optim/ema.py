"""Averages of the weights over training, several at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pmf.config import EmaConfig, number_name
from pmf.strict import require_same_tensors


def half_life_decay(half_life_kimg: float, images_seen: int, images_per_step: int) -> float:
    """Weight of the old average in one update, the "edm" rule of pMF utils/ema_util.py.

    beta = 0.5^(images_per_step / H), H = min(1000 half_life_kimg, 0.05 images_seen): early on the half-life is a
    twentieth of the run so far, so that the average soon forgets the initial weights. The official code always counts
    1024 images a step; this counts the true ones.

    Args:
        half_life_kimg: in thousands of images, > 0.
        images_seen: images trained on, those of this update included.
        images_per_step: the global batch.

    Returns:
        beta in [0, 1).
    """
    half_life = min(1000.0 * half_life_kimg, 0.05 * images_seen)
    return 0.5 ** (images_per_step / max(half_life, 1e-8))


class WeightAverages:
    """One float32 average of all parameters per half-life and per constant decay; each starts as the weights.

    Averages are of the parameters as they stand, frozen ones included, so that each is a complete set of weights.
    """

    def __init__(self, network: nn.Module, config: EmaConfig) -> None:
        """Copy the network's parameters, on their device, once per average."""
        self._half_lives = {str(number_name(value)): value for value in config.half_lives_kimg}
        self._decays = {str(number_name(value)): value for value in config.decays}
        self._tensors = {
            name: {key: parameter.detach().float().clone() for key, parameter in network.named_parameters()}
            for name in (*self._half_lives, *self._decays)
        }

    @property
    def names(self) -> list[str]:
        """``500`` for a half-life of 500 kimg, ``0.9999`` for a decay: those of ``pmf.config.ema_names``."""
        return list(self._tensors)

    @torch.no_grad()
    def update(self, network: nn.Module, images_seen: int, images_per_step: int) -> None:
        """Average in the weights after an optimizer step: average = beta average + (1 - beta) weights.

        Args:
            network: the one that the averages were made of.
            images_seen: images trained on, those of this step included.
            images_per_step: the global batch.
        """
        weights = [parameter.detach().float() for parameter in network.parameters()]
        for name, tensors in self._tensors.items():
            beta = (
                self._decays[name]
                if name in self._decays
                else half_life_decay(self._half_lives[name], images_seen, images_per_step)
            )
            torch._foreach_lerp_(list(tensors.values()), weights, 1 - beta)

    def state(self, name: str) -> dict[str, Tensor]:
        """The average's own tensors by parameter name (not copies)."""
        return dict(self._tensors[name])

    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite one average, bit for bit.

        Raises:
            UserError: names or shapes differ; names the first of them.
        """
        own = self._tensors[name]
        require_same_tensors(
            own,
            tensors,
            intro=f"average '{name}' is of another run",
            advice="check model.name, data.image_size and data.num_classes",
        )
        for key, tensor in own.items():
            tensor.copy_(tensors[key])
