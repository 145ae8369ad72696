"""From standard normal noise to bytes, as one module of tensors that torch.export can trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pmf.data.codec import to_levels
from pmf.data.options import network_shape, pixel_space
from pmf.errors import UserError
from pmf.flow.objective import create_objective
from pmf.generation.noise import NoiseOptions, image_noise
from pmf.generation.plan import plan_samples
from pmf.generator.model import Generator

GUIDANCE = ("omega", "interval")
"""Sampling options that are inputs, where the method leaves them open."""
NOT_OF_A_GRAPH = ("noise", "precision")
"""How noise is drawn is up to the user, and a file computes in float32."""


class OneGraph(nn.Module):
    """All steps of a generator; what its sampling section says beside ``omega`` and ``interval`` is built in.

    Attributes:
        guidance: names of the inputs beside noise and label.
    """

    def __init__(self, model: Generator, num_steps: int | None = None) -> None:
        """For the weights of a generator.

        Args:
            num_steps: network evaluations; None is the config's.

        Raises:
            UserError: its network makes latents, which an autoencoder would have to decode.
        """
        super().__init__()
        config = model.config
        if network_shape(config.data) != pixel_space(config.data):
            raise UserError(
                f"{model.weights_source}: makes latents (data.kind is {config.data.kind}); only networks that make "
                "pixels are exported"
            )
        self.network = model.network
        self._objective = create_objective(config.objective, num_classes=config.data.num_classes)
        self._shape = model.image_shape
        self._num_classes = config.data.num_classes
        plan = plan_samples(config, num_images=1, seed=0, weights=model.weights_source)
        steps = {} if num_steps is None else {"num_steps": num_steps}
        self.settings: Mapping[str, Any] = {
            name: value for name, value in plan.settings.items() if name not in NOT_OF_A_GRAPH
        } | steps
        self.guidance = tuple(name for name in GUIDANCE if name not in config.objective.fixed_sampling)

    def levels(
        self, noise: Tensor, label: Tensor, omega: Tensor | None = None, interval: Tensor | None = None
    ) -> Tensor:
        """Grey levels before they are rounded.

        Args:
            noise: (B, C, H, W) float32, standard normal, whatever the run's noise scale is.
            label: (B,) int64 in [0, num_classes).
            omega: (B,) float32, guidance scale from 1; None, as for methods that fix it, is the config's.
            interval: (B, 2) float32, guidance interval [t_min, t_max]; None likewise.

        Returns:
            (B, C, H, W) float32 in [0, 255].
        """
        given: dict[str, Any] = {}
        if omega is not None:
            given["omega"] = omega
        if interval is not None:
            given["interval"] = interval.unbind(1)
        z = noise * self._objective.noise_scale
        return to_levels(self._objective.generate(self.network, z, label, **{**self.settings, **given}))

    def forward(
        self, noise: Tensor, label: Tensor, omega: Tensor | None = None, interval: Tensor | None = None
    ) -> Tensor:
        """The images, (B, C, H, W) uint8; see :meth:`levels`."""
        return self.levels(noise, label, omega, interval).round().to(torch.uint8)

    def example(self, rows: int) -> dict[str, Tensor]:
        """Inputs by name, for ``rows`` images whose classes, guidance scales and intervals all differ."""
        fractions = torch.linspace(0, 1, rows + 1)[1:]
        found = {
            "noise": image_noise(NoiseOptions(seed=rows, shape=self._shape, scale=1.0), range(rows)),
            "label": torch.arange(rows) * max(self._num_classes // rows, 1) % self._num_classes,
            "omega": 1 + 7 * fractions,
            "interval": torch.stack((0.2 * fractions, 1 - 0.5 * fractions), dim=1),
        }
        return {name: found[name] for name in ("noise", "label", *self.guidance)}
