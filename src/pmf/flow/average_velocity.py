"""What the methods of the family share: they train u(z, r, t), the average velocity of the flow over [r, t].

t, r: times, 1 is noise, r <= t; z = (1 - t) x + t e: image x and noise e, mixed; F: the number of flow-matching rows
of a micro-batch, its first ones, which have r = t. What a method trains u towards is on the page of the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from pmf.errors import UserError
from pmf.flow.dealing import Work, deal
from pmf.flow.derivative import DERIVATIVES, carries_tangents, require_derivative
from pmf.flow.draws import (
    StandardDraws,
    StandardScalars,
    TimeDraws,
    draw_scalars,
    draw_standard,
    sample_label_drop,
)
from pmf.flow.filling import Filling
from pmf.flow.objective import Objective
from pmf.flow.options import AverageVelocityOptions
from pmf.flow.parameterization import Parameterization, VelocityPrediction, per_image
from pmf.flow.sampler import generate
from pmf.net.interface import Network

StepDraws = TypeVar("StepDraws", bound=TimeDraws)


class AverageVelocityObjective(Objective[StandardScalars, StepDraws]):
    """Draws, dealing, adaptive weight and generation of the family; a method adds :meth:`shape`, :meth:`work`, loss.

    Attributes:
        heads: of the network that is trained.
        drops_first_rows: as many of the first rows as a drawn count lose their label; otherwise each draws for itself.
        parameterization: what an output of the network means.
        recordable: what a class says of itself, and not of its subclasses: its loss keeps nothing from step to step,
            and asks tensors for no values, so that ``training.cuda_graph`` can record it.
        filling: rows of passes that nobody needs.
    """

    shown = "loss_u"  # the total says little, because of the adaptive weight
    heads: Literal["u", "uv"] = "uv"
    drops_first_rows = True
    parameterization: Parameterization = VelocityPrediction()
    recordable = False

    def __init__(
        self,
        settings: AverageVelocityOptions,
        *,
        num_classes: int,
        static_shapes: bool = False,
        few_sizes: bool = False,
        **_: Any,
    ) -> None:
        """Keep the settings; see :func:`pmf.flow.objective.create_objective`, also for what is ignored here."""
        self.settings = settings
        self.filling = Filling(static_shapes=static_shapes, few_sizes=few_sizes)
        self.null_label = num_classes
        self.derivative = DERIVATIVES[settings.derivative]

    def require_network(self, network: Network, *, compiled: bool, parallel: str) -> None:
        """Whether the network has the heads that are trained, no other, and the derivative that the options ask for.

        Raises:
            UserError: it has not; see also :func:`require_derivative`.
        """
        trained, name = f"objective.name is {self.settings.name}, which trains", type(network).__name__
        has_v = "v" in getattr(network, "heads", self.heads)
        if self.heads == "uv" and not has_v:
            raise UserError(f"{trained} a u and a v head; {name} has no v head")
        if self.heads == "u" and has_v:
            raise UserError(f"{trained} a u head alone; the v head of {name} would never be trained")
        require_derivative(network, self.settings.derivative, compiled=compiled, parallel=parallel)

    def require_recordable(self, network: Network) -> None:
        """See :class:`Objective`: a class that says so itself, and a network that carries its tangents."""
        if not vars(type(self)).get("recordable"):
            super().require_recordable(network)
        if self.settings.derivative == "jvp" or not carries_tangents(network):
            raise UserError(
                f"training.cuda_graph is on, but du/dt of {type(network).__name__} is taken by jvp, which is not "
                "recorded; set it to false"
            )

    def shape(self, standard: StandardDraws) -> StepDraws:
        """What the method makes of raw draws; deterministic."""
        raise NotImplementedError

    def work(self, scalars: StandardScalars, num_flow_matching: int) -> Work:
        """What each row asks for beyond the training pass, if so many first rows are flow matching."""
        raise NotImplementedError

    def draw(self, images: Tensor, generator: torch.Generator, scalars: StandardScalars | None = None) -> StepDraws:
        """Every random number of one micro-batch."""
        return self.shape(draw_standard(images, generator, scalars))

    def draw_rows(
        self, rows: int, num_micro_batches: int, wanted: Sequence[int], generator: torch.Generator
    ) -> list[StandardScalars]:
        """The scalars of a global batch, dealt so that no micro-batch has more to do than another."""
        return self.deal(draw_scalars(rows, generator), num_micro_batches, wanted)

    def deal(self, scalars: StandardScalars, num_micro_batches: int, wanted: Sequence[int]) -> list[StandardScalars]:
        """The rows of a global batch that each micro-batch which is wanted gets; see :func:`pmf.flow.dealing.deal`."""
        num_flow_matching = self.num_flow_matching(scalars.normal_t.shape[0] // num_micro_batches)
        return deal(
            scalars,
            self.work(scalars, num_micro_batches * num_flow_matching),
            num_flow_matching,
            self.settings.label_drop if self.drops_first_rows else 0.0,
            num_micro_batches,
            wanted,
        )

    def num_flow_matching(self, rows: int) -> int:
        """F, of a micro-batch of so many rows."""
        return int(rows * self.settings.data_proportion)

    def dropped(self, scalars: StandardScalars) -> Tensor:
        """Rows that lose their label, (B,) bool."""
        return sample_label_drop(scalars, self.settings.label_drop, first_rows=self.drops_first_rows)

    def adaptive(self, loss: Tensor) -> Tensor:
        """Loss over stopgrad((loss + epsilon)^p), per row (MeanFlow section 4.3)."""
        return loss / (loss.detach() + self.settings.adaptive_epsilon) ** self.settings.adaptive_power

    def generate(self, network: Network, noise: Tensor, labels: Tensor, **sampling: Any) -> Tensor:
        """Noise to images; see :func:`pmf.flow.sampler.generate`, also for the sampling options."""
        return generate(network, self.parameterization, noise, labels, **sampling)


def noisy(x: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """z = (1 - t) x + t e, images and noise (B, C, H, W) mixed at times (B,)."""
    return (1 - per_image(t)) * x + per_image(t) * e
