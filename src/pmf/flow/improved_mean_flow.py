"""The improved mean flow step: iMF, arXiv 2512.02012, algorithm 1 and section 4 (official imf.py, forward).

    t, r     drawn: the larger and the smaller of two logit-normal times, r = t on F rows    sample_times
    omega, t_min, t_max, e    drawn: guidance scale and interval, noise                       shape
    z    = (1 - t) x + t e          image x and noise, mixed: z = x at t = 0
    v_t  = e - x                    the velocity of the true image                             true_velocity
    v_c  = v(z, t, label)           the velocity that the network predicts by its v head,
    v_u  = v(z, t, no label)        without gradient                                           predicted_velocities
    v_g  = v_t + (1 - 1 / omega) (v_c - v_u)    the guided target                              guided_velocity
    u, v, du/dt = u(z, r, t), v(z, t), and the derivative of u along (dz, dr, dt) = (v_c, 0, 1)    derivative
    V    = u + (t - r) stopgrad(du/dt)
    loss = |V - v_g|^2 + |v - v_g|^2, each divided by stopgrad(itself + epsilon)^p             adaptive

u(z, r, t) is the average velocity over [r, t], v(z, t) the one at t; the network predicts both, and is told the scale
and the interval that it is trained for. F rows of each micro-batch are plain flow matching: r = t, so V = u.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pmf.flow.average_velocity import AverageVelocityObjective, noisy
from pmf.flow.dealing import Work
from pmf.flow.draws import (
    Draws,
    Guidance,
    StandardDraws,
    StandardScalars,
    Times,
    active_scale,
    logit_normal,
    sample_guidance,
    sorted_times,
)
from pmf.flow.filling import fill, weigh
from pmf.flow.guidance import guided_velocity, predicted_velocities
from pmf.flow.objective import LossTerms
from pmf.flow.options import DrawnGuidanceOptions
from pmf.flow.parameterization import per_image
from pmf.flow.transfer import move_together
from pmf.net.interface import Conditions, Network, head


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


class ImprovedMeanFlow(AverageVelocityObjective[Draws]):
    """The objective of iMF; see :class:`pmf.flow.objective.Objective`.

    Attributes:
        perceptual_max_t: rows with t below it are under perceptual losses; iMF has none.
    """

    recordable = True
    settings: DrawnGuidanceOptions
    compiled_methods = ("_mix", "_compound", "_target", "velocity_terms")
    perceptual_max_t: float = 0.0

    def sample_times(self, scalars: StandardScalars, num_flow_matching: int) -> Times:
        """Sorted, then r := t on the flow-matching rows."""
        t, r = (logit_normal(normal, self.settings) for normal in (scalars.normal_t, scalars.normal_r))
        return sorted_times(t, r, num_flow_matching)

    def shape(self, standard: StandardDraws) -> Draws:
        """The distributions of the method, from standard normals and uniforms."""
        F = self.num_flow_matching(len(standard.normal_t))
        times, guidance, dropped = self.sample_times(standard, F), self._guidance(standard, F), self.dropped(standard)
        guided = self._is_guided(times, guidance)
        guided[dropped] = False
        rows = len(guided)
        unconditional_rows = guided.nonzero()[:, 0]
        needed = rows - F + max(len(unconditional_rows), self.filling.least)
        of_pass = self.filling.guidance(needed, rows - F + rows, rows) - (rows - F)
        perceptual_rows = self.perceptual_rows(times)
        under = self.filling.perceptual(len(perceptual_rows), rows)
        tensors = {
            **vars(times),
            **vars(guidance),
            "dropped": dropped,
            "unconditional_rows": fill(unconditional_rows, of_pass),
            "unconditional_weight": weigh(1 - 1 / guidance.omega[unconditional_rows], of_pass),
            "perceptual_rows": fill(perceptual_rows, under),
            "perceptual_weight": weigh(torch.ones_like(times.t[perceptual_rows]), under),
            "uniform_crop": standard.uniform_crop[fill(perceptual_rows, under)],
        }
        return Draws(
            e=standard.normal_e * self.noise_scale,
            num_flow_matching=F,
            **move_together(tensors, standard.normal_e.device),
        )

    def perceptual_rows(self, times: Times) -> Tensor:
        """Rows under perceptual losses, (P,) int64."""
        return (times.t < self.perceptual_max_t).nonzero()[:, 0]

    def work(self, scalars: StandardScalars, num_flow_matching: int) -> Work:
        """v_u of the guided rows; v_c comes from the same pass, and is asked of equally many rows in each micro-batch.

        Every flow-matching row is guided, unless it loses its label.
        """
        times = self.sample_times(scalars, num_flow_matching)
        guided = self._is_guided(times, self._guidance(scalars, num_flow_matching))
        if self.drops_first_rows:
            guided[:num_flow_matching] = False
        else:
            guided[self.dropped(scalars)] = False
        return Work(
            guidance=guided.int().tolist(),
            perceptual=(times.t < self.perceptual_max_t).tolist(),
            every_flow_matching=int(self.drops_first_rows),
        )

    def loss(self, network: Network, images: Tensor, labels: Tensor, draws: Draws) -> LossTerms:
        """The loss of one micro-batch.

        Returns:
            ``total`` stays near 2 whatever happens, because of the adaptive weight; watch ``loss_u`` and ``loss_v`` of
            ``logs``, the plain means over all elements. ``parts`` are raw_u and raw_v, the squared errors summed over
            channels and pixels, and weighted_u and weighted_v, after the adaptive weight.
        """
        parts, logs = self.velocity_terms(self.evaluate(network, images, labels, draws))
        total = (parts["weighted_u"] + parts["weighted_v"]).mean()
        return LossTerms(total=total, logs={"loss": total.detach(), **logs}, parts=parts)

    def velocity_terms(self, fields: Fields) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The two terms of the page above, as ``parts`` and ``logs`` of :meth:`loss`."""
        raw_u = (fields.V - fields.v_g).square().sum((1, 2, 3))
        raw_v = (fields.v - fields.v_g).square().sum((1, 2, 3))
        logs = {
            "loss_u": raw_u.detach().mean() / fields.z[0].numel(),
            "loss_v": raw_v.detach().mean() / fields.z[0].numel(),
        }
        parts = {
            "raw_u": raw_u,
            "raw_v": raw_v,
            "weighted_u": self.adaptive(raw_u),
            "weighted_v": self.adaptive(raw_v),
        }
        return parts, logs

    def evaluate(self, network: Network, images: Tensor, labels: Tensor, draws: Draws) -> Fields:
        """Run the network where the loss needs it; see :meth:`loss` for the arguments."""
        z, v_t = self._mix(images, draws)
        v_c, v_u = predicted_velocities(network, self.parameterization, z, labels, self.null_label, draws)
        conditions = Conditions(
            t=draws.t,
            h=draws.t - draws.r,
            omega=draws.omega,
            t_min=draws.t_min,
            t_max=draws.t_max,
            labels=labels.masked_fill(draws.dropped, self.null_label),
        )
        u, v, du_dt = self.derivative(network, self.parameterization, z, conditions, (v_c, 0.0, 1.0))
        v = head(v)
        V = self._compound(u, du_dt, draws)
        v_c, v_g = self._target(v_t, v, v_c, v_u, draws)
        return Fields(z=z, v_t=v_t, v_c=v_c, v_u=v_u, v_g=v_g, u=u, v=v, du_dt=du_dt, V=V)

    def _mix(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """z and v_t."""
        z = noisy(x, draws.e, draws.t)
        return z, self.parameterization.true_velocity(x, draws.e, z, draws.t)

    def _compound(self, u: Tensor, du_dt: Tensor, draws: Draws) -> Tensor:
        """V."""
        F = draws.num_flow_matching
        return torch.cat((u[:F], u[F:] + per_image((draws.t - draws.r)[F:]) * du_dt))

    def _target(self, v_t: Tensor, v: Tensor, v_c: Tensor, v_u: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """v_c of all rows, from that of the guidance pass, and v_g."""
        # On the flow-matching rows the training pass had the inputs of the conditional guidance pass, but for dropped
        # labels, and rows without a label are not guided.
        v_c = torch.cat((v[: draws.num_flow_matching].detach(), v_c))
        return v_c, guided_velocity(v_t, v_c, v_u, draws)

    def _guidance(self, scalars: StandardScalars, num_flow_matching: int) -> Guidance:
        return sample_guidance(scalars, self.settings, num_flow_matching)

    def _is_guided(self, times: Times, guidance: Guidance) -> Tensor:
        """Rows whose guidance scale at t is not 1, (B,) bool."""
        return active_scale(guidance.omega, times.t, guidance.t_min, guidance.t_max) != 1
