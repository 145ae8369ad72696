"""The pixel mean flow step: pMF, arXiv 2601.22158, section 3 and algorithm 1 (official pmf.py, forward).

    t, r, omega, t_min, t_max, e    drawn: times r <= t, guidance scale and interval, noise    shape_draws
    z    = (1 - t) x + t e          image x and noise, mixed: z = x at t = 0
    v_t  = (z - x) / t              the velocity of the true image                             true_velocity
    v_c  = v(z, t, label)           the velocity that the network predicts by its v head,
    v_u  = v(z, t, no label)        without gradient                                           predicted_velocities
    v_g  = v_t + (1 - 1 / omega) (v_c - v_u)    the guided target                              guided_velocity
    u, v, du/dt = u(z, r, t), v(z, t), and the derivative of u along (dz, dr, dt) = (v_c, 0, 1)    derivative
    V    = u + (t - r) stopgrad(du/dt)
    loss = |V - v_g|^2 + |v - v_g|^2, each divided by stopgrad(itself + epsilon)^p             _adaptive
           + distances of the denoised image z - t u from x, on rows with small t              _perceptual

u(z, r, t) is the average velocity over [r, t], v(z, t) the one at t; the network predicts the image of either, which
``to_velocity`` turns into a velocity. F rows of each micro-batch are plain flow matching: r = t, so V = u.
To change the loss, change this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmf.errors import UserError
from pmf.flow.dealing import deal
from pmf.flow.derivative import DERIVATIVES, require_derivative
from pmf.flow.draws import Draws, StandardScalars, draw_scalars, draw_standard, shape_draws
from pmf.flow.guidance import guided_velocity, predicted_velocities
from pmf.flow.objective import LossTerms, Objective, PerceptualDistances
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.parameterization import create_parameterization, per_image
from pmf.flow.sampler import generate
from pmf.net.interface import Conditions, Network


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The letters of the page above, (B, C, H, W) unless said; only u, v and V have a graph.

    Attributes:
        v_u: (U, C, H, W), of ``draws.unconditional_rows``.
        v_g: after the label drop.
        du_dt: (B - F, C, H, W), of the rows after the F flow-matching ones.
    """

    z: Tensor
    v_t: Tensor
    v_c: Tensor
    v_u: Tensor
    v_g: Tensor
    u: Tensor
    v: Tensor
    du_dt: Tensor
    V: Tensor


class PixelMeanFlow(Objective[StandardScalars, Draws]):
    """The objective of pMF, and of its ablations; see :class:`pmf.flow.objective.Objective`."""

    shown = "loss_u"  # the total stays near 2

    def __init__(
        self,
        settings: PixelMeanFlowOptions,
        *,
        num_classes: int,
        perceptual: PerceptualDistances | None = None,
        perceptual_max_t: float = 1.0,
        static_shapes: bool = False,
    ) -> None:
        self.settings = settings
        self.noise_scale = settings.noise_scale
        self.static_shapes = static_shapes
        self.null_label = num_classes
        self.perceptual = perceptual
        self.perceptual_max_t = perceptual_max_t
        self.parameterization = create_parameterization(settings.parameterization, settings.noise_scale)
        self.derivative = DERIVATIVES[settings.derivative]

    def require_network(self, network: Network, *, compiled: bool, parallel: str) -> None:
        """Whether the network has both heads, and the derivative that the options ask for.

        Raises:
            UserError: it has not; see also :func:`require_derivative`.
        """
        if "v" not in getattr(network, "heads", "uv"):
            raise UserError(
                f"objective.name is pmf, which trains a u and a v head; {type(network).__name__} has no v head"
            )
        require_derivative(network, self.settings.derivative, compiled=compiled, parallel=parallel)

    def draw(self, images: Tensor, generator: torch.Generator, scalars: StandardScalars | None = None) -> Draws:
        """Every random number of one micro-batch."""
        return shape_draws(draw_standard(images, generator, scalars), self.settings, self.perceptual_max_t)

    def draw_rows(
        self, rows: int, num_micro_batches: int, wanted: Sequence[int], generator: torch.Generator
    ) -> list[StandardScalars]:
        """The scalars of a global batch, dealt so that no micro-batch has more to do than another."""
        return deal(draw_scalars(rows, generator), self.settings, self.perceptual_max_t, num_micro_batches, wanted)

    def loss(self, network: Network, images: Tensor, labels: Tensor, draws: Draws) -> LossTerms:
        """The loss of one micro-batch.

        Returns:
            ``total`` stays near 2 whatever happens, because of the adaptive weight; watch ``loss_u`` and ``loss_v`` of
            ``logs``, the plain means over all elements. ``parts`` are raw_u and raw_v, the squared errors summed over
            channels and pixels, and weighted_u, weighted_v and weighted_perceptual, after the adaptive weight.
        """
        fields = self.evaluate(network, images, labels, draws)
        raw_u = (fields.V - fields.v_g).square().sum((1, 2, 3))
        raw_v = (fields.v - fields.v_g).square().sum((1, 2, 3))
        weighted_u, weighted_v = self._adaptive(raw_u), self._adaptive(raw_v)
        logs = {
            "loss_u": raw_u.detach().mean() / images[0].numel(),
            "loss_v": raw_v.detach().mean() / images[0].numel(),
        }
        weighted_perceptual = self._perceptual(fields, images, draws, logs)
        total = (weighted_u + weighted_v + weighted_perceptual).mean()
        return LossTerms(
            total=total,
            logs={"loss": total.detach(), **logs},
            parts={
                "raw_u": raw_u,
                "raw_v": raw_v,
                "weighted_u": weighted_u,
                "weighted_v": weighted_v,
                "weighted_perceptual": weighted_perceptual,
            },
        )

    def evaluate(self, network: Network, images: Tensor, labels: Tensor, draws: Draws) -> Fields:
        """Run the network where the loss needs it; see :meth:`loss` for the arguments."""
        x, e, t, r, F = images, draws.e, draws.t, draws.r, draws.num_flow_matching
        z = (1 - per_image(t)) * x + per_image(t) * e
        v_t = self.parameterization.true_velocity(x, e, z, t)
        v_c, v_u = predicted_velocities(
            network, self.parameterization, z, labels, self.null_label, draws, static_shapes=self.static_shapes
        )
        conditions = Conditions(
            t=t,
            h=t - r,
            omega=draws.omega,
            t_min=draws.t_min,
            t_max=draws.t_max,
            labels=labels.index_fill(0, draws.dropped_rows, self.null_label),
        )
        u, v, du_dt = self.derivative(network, self.parameterization, z, conditions, (v_c, 0.0, 1.0))
        V = torch.cat((u[:F], u[F:] + per_image((t - r)[F:]) * du_dt))
        # On the flow-matching rows the training pass had the inputs of the conditional guidance pass, but for dropped
        # labels, and rows without a label are not guided.
        v_c = torch.cat((v[:F].detach(), v_c))
        v_g = guided_velocity(v_t, v_c, v_u, draws)
        return Fields(z=z, v_t=v_t, v_c=v_c, v_u=v_u, v_g=v_g, u=u, v=v, du_dt=du_dt, V=V)

    def generate(self, network: Network, noise: Tensor, labels: Tensor, **sampling: Any) -> Tensor:
        """Noise to images; see :func:`pmf.flow.sampler.generate`, also for the sampling options."""
        return generate(network, self.parameterization, noise, labels, **sampling)

    def _adaptive(self, loss: Tensor) -> Tensor:
        """Loss over stopgrad((loss + epsilon)^p), per row (MeanFlow section 4.3)."""
        return loss / (loss.detach() + self.settings.adaptive_epsilon) ** self.settings.adaptive_power

    def _perceptual(self, fields: Fields, images: Tensor, draws: Draws, logs: dict[str, Tensor]) -> Tensor:
        """Weighted distances of the denoised image z - t u, on the rows below the time threshold; 0 on others: (B,)."""
        rows = draws.perceptual_rows
        total = images.new_zeros(images.shape[0])
        if self.perceptual is None:
            return total
        factors = self.perceptual.factors
        logs |= {f"loss_{name}": total.new_zeros(()) for name in factors}  # all ranks must log the same names
        if not len(rows):
            return total
        denoised = fields.z[rows] - per_image(draws.t[rows]) * fields.u[rows]
        for name, distance in self.perceptual(denoised, images[rows], draws.uniform_crop).items():
            logs[f"loss_{name}"] = distance.detach().sum() / images.shape[0]
            total = total.index_add(0, rows, factors[name] * self._adaptive(distance))
        return total
