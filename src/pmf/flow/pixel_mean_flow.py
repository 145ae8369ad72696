"""The pixel mean flow objective (pMF section 3; official pmf.py forward).

x: image in [-1, 1]; e: noise; t in [0, 1], 1 is noise; r <= t; z = (1 - t) x + t e;
u(z, r, t): average velocity over [r, t]; v: instantaneous velocity; V = u + (t - r) du/dt;
v_t, v_g: velocity of the true image, and with guidance; v_c, v_u: predicted with label and without.

To change the loss, change this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pmf.flow.dealing import deal
from pmf.flow.derivative import DERIVATIVES, FlowPoint, Velocities
from pmf.flow.draws import Draws, StandardScalars, draw_scalars, draw_standard, shape_draws
from pmf.flow.guidance import GuidanceVelocities, guidance_velocities, guided_target
from pmf.flow.network import Network
from pmf.flow.options import ObjectiveConfig
from pmf.flow.parameterization import create_parameterization, per_image


class PerceptualDistances(Protocol):
    """Distances between denoised images and the true ones, by name.

    Attributes:
        factors: what each distance, after its adaptive weight, is multiplied with in the loss.
    """

    factors: Mapping[str, float]

    def __call__(self, prediction: Tensor, image: Tensor, uniform_crop: Tensor) -> Mapping[str, Tensor]:
        """Two batches (P, C, H, W) in [-1, 1] and (P, 4) uniforms of a crop to (P,) by name; gradients to the first."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every field of the step before the loss; (B, C, H, W) unless said.

    Attributes:
        guidance: v_c and v_u of the rows of the guidance pass.
        velocities: u, v and, for the rows with r < t, du/dt.
        compound: V = u + (t - r) stopgrad(du/dt).
        v_t: velocity of the true image.
        v_g: guided target, after the label drop; without graph.
    """

    z: Tensor
    v_t: Tensor
    guidance: GuidanceVelocities
    velocities: Velocities
    compound: Tensor
    v_g: Tensor


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What a step minimises and what is worth watching.

    Attributes:
        total: scalar with graph. With the adaptive weight it stays near 2 whatever happens; watch the raw parts.
        raw_u, raw_v: (B,) squared errors summed over channels and pixels, before the adaptive weight.
        weighted_u, weighted_v, weighted_perceptual: (B,) after it.
        logs: detached scalars; ``loss_u`` and ``loss_v`` are plain means over all elements.
    """

    total: Tensor
    raw_u: Tensor
    raw_v: Tensor
    weighted_u: Tensor
    weighted_v: Tensor
    weighted_perceptual: Tensor
    logs: dict[str, Tensor]


class PixelMeanFlow:
    """Draws, then a deterministic loss of network, images, labels and draws."""

    def __init__(
        self,
        settings: ObjectiveConfig,
        *,
        num_classes: int,
        perceptual: PerceptualDistances | None = None,
        perceptual_max_t: float = 1.0,
        static_shapes: bool = False,
    ) -> None:
        self.settings = settings
        self.static_shapes = static_shapes
        self.null_label = num_classes
        self.perceptual = perceptual
        self.perceptual_max_t = perceptual_max_t
        self.parameterization = create_parameterization(settings)
        self.derivative = DERIVATIVES[settings.derivative]

    def draw(self, images: Tensor, generator: torch.Generator, scalars: StandardScalars | None = None) -> Draws:
        """Draw every random number of one micro-batch.

        Args:
            images: (B, C, H, W) in [-1, 1].
            generator: on the CPU; a function of (seed, step, micro-batch).
            scalars: the micro-batch's part of :meth:`draw_rows`; only the noise is drawn then.
        """
        return shape_draws(draw_standard(images, generator, scalars), self.settings, self.perceptual_max_t)

    def draw_rows(
        self, rows: int, num_micro_batches: int, wanted: Sequence[int], generator: torch.Generator
    ) -> list[StandardScalars]:
        """Draw a global batch and deal its rows to micro-batches that all have equally much to do.

        Args:
            wanted: the micro-batches to return.
            generator: on the CPU; a function of (seed, step).
        """
        return deal(draw_scalars(rows, generator), self.settings, self.perceptual_max_t, num_micro_batches, wanted)

    def loss(self, network: Network, images: Tensor, labels: Tensor, draws: Draws) -> LossTerms:
        """The loss of one micro-batch, deterministic.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: (B,) int64 in [0, num_classes).
        """
        step = self.evaluate(network, images, labels, draws)
        raw_u = (step.compound - step.v_g).square().sum((1, 2, 3))
        raw_v = (step.velocities.v - step.v_g).square().sum((1, 2, 3))
        weighted_u, weighted_v = self._adaptive(raw_u), self._adaptive(raw_v)
        logs = {
            "loss_u": raw_u.detach().mean() / images[0].numel(),
            "loss_v": raw_v.detach().mean() / images[0].numel(),
        }
        weighted_perceptual = self._perceptual(step, images, draws, logs)
        total = (weighted_u + weighted_v + weighted_perceptual).mean()
        return LossTerms(
            total=total,
            raw_u=raw_u,
            raw_v=raw_v,
            weighted_u=weighted_u,
            weighted_v=weighted_v,
            weighted_perceptual=weighted_perceptual,
            logs={"loss": total.detach(), **logs},
        )

    def evaluate(self, network: Network, images: Tensor, labels: Tensor, draws: Draws) -> Evaluation:
        """Run the network where the loss needs it; see :meth:`loss` for the arguments."""
        z = (1 - per_image(draws.t)) * images + per_image(draws.t) * draws.e
        v_t = self.parameterization.true_velocity(images, draws.e, z, draws.t)
        guidance = guidance_velocities(
            network, self.parameterization, z, labels, self.null_label, draws, static_shapes=self.static_shapes
        )
        point = FlowPoint(
            z=z,
            t=draws.t,
            h=draws.t - draws.r,
            omega=draws.omega,
            t_min=draws.t_min,
            t_max=draws.t_max,
            labels=labels.index_fill(0, draws.dropped_rows, self.null_label),
        )
        velocities = self.derivative(network, self.parameterization, point, guidance.conditional)

        first = draws.num_flow_matching
        compound = torch.cat(
            (velocities.u[:first], velocities.u[first:] + per_image(point.h[first:]) * velocities.du_dt)
        )
        # On the flow-matching rows the training pass had the inputs of the conditional guidance pass, but for dropped
        # labels, and rows without a label are not guided.
        v_c = torch.cat((velocities.v[:first].detach(), guidance.conditional))
        v_g = guided_target(v_t, v_c, guidance.unconditional, draws)
        return Evaluation(z=z, v_t=v_t, guidance=guidance, velocities=velocities, compound=compound, v_g=v_g)

    def _adaptive(self, loss: Tensor) -> Tensor:
        """Loss over stopgrad((loss + epsilon)^p), per row (MeanFlow section 4.3)."""
        return loss / (loss.detach() + self.settings.adaptive_epsilon) ** self.settings.adaptive_power

    def _perceptual(self, step: Evaluation, images: Tensor, draws: Draws, logs: dict[str, Tensor]) -> Tensor:
        """Weighted distances of the denoised image z - t u, on the rows below the time threshold; 0 on others: (B,)."""
        rows = draws.perceptual_rows
        total = images.new_zeros(images.shape[0])
        if self.perceptual is None:
            return total
        factors = self.perceptual.factors
        logs |= {f"loss_{name}": total.new_zeros(()) for name in factors}  # on every rank, every time
        if not len(rows):
            return total
        denoised = step.z[rows] - per_image(draws.t[rows]) * step.velocities.u[rows]
        for name, distance in self.perceptual(denoised, images[rows], draws.uniform_crop).items():
            logs[f"loss_{name}"] = distance.detach().sum() / images.shape[0]
            total = total.index_add(0, rows, factors[name] * self._adaptive(distance))
        return total
