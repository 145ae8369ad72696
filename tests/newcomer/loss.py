"""A loss: the network predicts the image that was mixed with noise; one network evaluation makes an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pmf.flow.objective import LossTerms, Objective, ObjectiveOptions
from pmf.net.interface import Network, constant_conditions, head
from pmf.options import PositiveFloat
from pmf.randomness import normal_like


class DenoisingOptions(ObjectiveOptions):
    name: Literal["denoising"] = "denoising"
    power: PositiveFloat = 2.0
    """Of the absolute error."""


@dataclass
class Noisy:
    t: Tensor
    e: Tensor


class Denoising(Objective[Tensor, Noisy]):
    """Also remembers the mean error of the steps so far, as its state."""

    def __init__(self, options: DenoisingOptions, **_: Any) -> None:
        self.options = options
        self.errors = torch.zeros(2, dtype=torch.float64)  # sum and number

    def draw_rows(
        self, rows: int, num_micro_batches: int, wanted: Sequence[int], generator: torch.Generator
    ) -> list[Tensor]:
        dealt = torch.rand(rows, generator=generator).chunk(num_micro_batches)
        return [dealt[number] for number in wanted]

    def draw(self, images: Tensor, generator: torch.Generator, scalars: Tensor | None = None) -> Noisy:
        t = torch.rand(len(images), generator=generator) if scalars is None else scalars
        return Noisy(t=t.to(images), e=normal_like(images, generator))

    def loss(self, network: Network, images: Tensor, labels: Tensor, draws: Noisy) -> LossTerms:
        t = draws.t[:, None, None, None]
        conditions = constant_conditions(labels, images, t=1, h=1, omega=1, t_min=0, t_max=1)
        predicted = head(network((1 - t) * images + t * draws.e, conditions, heads="u").u)
        errors = (predicted - images).abs().pow(self.options.power).mean((1, 2, 3))
        self.errors += torch.stack((errors.detach().sum(), errors.new_tensor(float(len(errors))))).double()
        total = errors.mean()
        return LossTerms(total=total, logs={"loss": total.detach()}, parts={"error": errors})

    def generate(self, network: Network, noise: Tensor, labels: Tensor, *, num_steps: int, **_: Any) -> Tensor:
        conditions = constant_conditions(labels, noise, t=1, h=1, omega=1, t_min=0, t_max=1)
        return head(network(noise, conditions, heads="u").u)

    def state(self) -> dict[str, Tensor]:
        return {"errors": self.errors}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.errors = tensors["errors"].clone()
