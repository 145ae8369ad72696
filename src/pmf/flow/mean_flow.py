"""The mean flow step: MeanFlow, arXiv 2505.13447, algorithm 1 and section 4.2 (official meanflow.py, forward).

    t, r, e  drawn: the larger and the smaller of two times, r = t on F rows; noise           shape
    z      = (1 - t) x + t e        image x and noise, mixed: z = x at t = 0
    v_t    = e - x                  the velocity of the true image
    v_u, v_c = u(z, t, t) without a label and with it: the network's own velocities at t, without gradient    _own
    v_g    = omega v_t + (1 - omega - kappa) v_u + kappa v_c    the guided velocity            _guided
             for t in [t_start, t_end], on rows that keep their label; v_g = v_t on others
    u, du/dt = u(z, r, t), and its derivative along (dz, dr, dt) = (v_g, 0, 1)                 derivative
    loss   = |u - stopgrad(v_g - (t - r) du/dt)|^2, divided by stopgrad(itself + epsilon)^p    adaptive

u(z, r, t) is the average velocity over [r, t]. omega (``guidance_scale``), kappa (``guidance_mixing``) and the interval
are the run's: the network is not told them, and generates under guidance of the scale omega / (1 - kappa) in one pass.
Without kappa v_g = v_u + omega (v_t - v_u), and with omega = 1 too it is v_t. F rows of each micro-batch are plain flow
matching: r = t, and the loss has no derivative. To change the loss, change this file.

Of the guidance pass only what v_g needs is computed: v_u where its coefficient is not 0, v_c where kappa is not, both
on guided rows alone; and on flow-matching rows v_c is the u of the training pass, which has the same inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pmf.flow.average_velocity import AverageVelocityObjective, noisy
from pmf.flow.dealing import Work
from pmf.flow.draws import StandardDraws, StandardScalars, TimeDraws, Times, logit_normal, sorted_times
from pmf.flow.objective import LossTerms
from pmf.flow.options import MeanFlowOptions
from pmf.flow.parameterization import per_image
from pmf.net.interface import Conditions, Network, head


@dataclass(frozen=True, kw_only=True)
class GuidedRows(TimeDraws):
    """The draws of a micro-batch.

    Attributes:
        guided_rows: (G,) int64, ascending: rows that keep their label and whose t is in the guidance interval; none
            where v_g = v_t everywhere.
        num_guided_flow_matching: the first so many of them are flow-matching rows.
    """

    guided_rows: Tensor
    num_guided_flow_matching: int


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The letters of the page above, (B, C, H, W) unless said; only u has a graph.

    Attributes:
        v_g: after the label drop.
        du_dt: (B - F, C, H, W), of the rows after the F flow-matching ones.
        target: what u is trained towards.
    """

    z: Tensor
    v_t: Tensor
    v_g: Tensor
    u: Tensor
    du_dt: Tensor
    target: Tensor


class MeanFlow(AverageVelocityObjective[GuidedRows]):
    """The objective of MeanFlow; see :class:`pmf.flow.objective.Objective`."""

    settings: MeanFlowOptions
    heads = "u"

    @property
    def unconditional_factor(self) -> float:
        """The coefficient of v_u, 1 - omega - kappa; decimals that sum to 1 leave exactly 0."""
        factor = 1 - self.settings.guidance_scale - self.settings.guidance_mixing
        return 0.0 if math.isclose(factor, 0.0, abs_tol=1e-12) else factor

    def sample_times(self, scalars: StandardScalars, num_flow_matching: int) -> Times:
        """Sorted, then r := t on the flow-matching rows."""
        if self.settings.time_distribution == "uniform":
            return sorted_times(scalars.uniform_t, scalars.uniform_r, num_flow_matching)
        t, r = (logit_normal(normal, self.settings) for normal in (scalars.normal_t, scalars.normal_r))
        return sorted_times(t, r, num_flow_matching)

    def shape(self, standard: StandardDraws) -> GuidedRows:
        """The distributions of the method, from standard normals and uniforms."""
        F = self.num_flow_matching(len(standard.normal_t))
        times, dropped = self.sample_times(standard, F), self.dropped(standard)
        guided = self._is_guided(times.t) & ~dropped
        device = standard.normal_e.device

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return GuidedRows(
            t=move(times.t),
            r=move(times.r),
            e=standard.normal_e,
            num_flow_matching=F,
            dropped_rows=move(dropped.nonzero()[:, 0]),
            guided_rows=move(guided.nonzero()[:, 0]),
            num_guided_flow_matching=int(guided[:F].sum()),
        )

    def work(self, scalars: StandardScalars, num_flow_matching: int) -> Work:
        """v_u and v_c of the guided rows; v_c of the others only."""
        guided = self._is_guided(self.sample_times(scalars, num_flow_matching).t).int()
        passes = torch.full_like(guided, bool(self.unconditional_factor))
        passes[num_flow_matching:] += bool(self.settings.guidance_mixing)
        return Work(guidance=(guided * passes).tolist(), perceptual=[False] * len(guided))

    def loss(self, network: Network, images: Tensor, labels: Tensor, draws: GuidedRows) -> LossTerms:
        """The loss of one micro-batch.

        Returns:
            ``total`` stays near 1 whatever happens, because of the adaptive weight; watch ``loss_u`` of ``logs``, the
            plain mean over all elements. ``loss_v`` is the mean square of u - v_t. ``parts`` are raw_u, the squared
            error summed over channels and pixels, weighted_u, the same after the adaptive weight, and raw_v.
        """
        fields = self.evaluate(network, images, labels, draws)
        raw_u = (fields.u - fields.target).square().sum((1, 2, 3))
        raw_v = (fields.u.detach() - fields.v_t).square().sum((1, 2, 3))
        weighted_u = self.adaptive(raw_u)
        total = weighted_u.mean()
        logs = {
            "loss": total.detach(),
            "loss_u": raw_u.detach().mean() / images[0].numel(),
            "loss_v": raw_v.mean() / images[0].numel(),
        }
        return LossTerms(total=total, logs=logs, parts={"raw_u": raw_u, "weighted_u": weighted_u, "raw_v": raw_v})

    def evaluate(self, network: Network, images: Tensor, labels: Tensor, draws: GuidedRows) -> Fields:
        """Run the network where the loss needs it; see :meth:`loss` for the arguments."""
        x, e, t, r, F = images, draws.e, draws.t, draws.r, draws.num_flow_matching
        z = noisy(x, e, t)
        v_t = self.parameterization.true_velocity(x, e, z, t)
        v_u, v_c = self._own(network, z, labels, draws)
        split = draws.num_guided_flow_matching
        first, others = draws.guided_rows[:split], draws.guided_rows[split:]
        v_g = self._guided(v_t, others, v_u[split:], v_c)
        conditions = _conditions(t, t - r, labels.index_fill(0, draws.dropped_rows, self.null_label))
        along = (v_g[F:], 0.0, 1.0)
        u, _, du_dt = self.derivative(network, self.parameterization, z, conditions, along, self.heads)
        v_g = self._guided(v_g, first, v_u[:split], u[first].detach())
        # The official code clips t - r to [0, 1], where these times are anyway.
        target = torch.cat((v_g[:F], v_g[F:] - per_image((t - r)[F:]) * du_dt))
        return Fields(z=z, v_t=v_t, v_g=v_g, u=u, du_dt=du_dt, target=target)

    def _own(self, network: Network, z: Tensor, labels: Tensor, draws: GuidedRows) -> tuple[Tensor, Tensor]:
        """v_u of the guided rows, and v_c of those that are not flow matching, by one pass without gradient.

        Returns:
            (G, C, H, W) and (G - those of flow matching, C, H, W); one with the coefficient 0 is empty.
        """
        guided, none = draws.guided_rows, draws.guided_rows[:0]
        without = guided if self.unconditional_factor else none
        with_label = guided[draws.num_guided_flow_matching :] if self.settings.guidance_mixing else none
        rows = torch.cat((without, with_label))
        needed, unconditional = len(rows), len(without)
        most = bool(self.unconditional_factor) * len(z)
        most += bool(self.settings.guidance_mixing) * (len(z) - draws.num_flow_matching)
        if not most:
            return z[none], z[none]
        # Filled with rows that nobody needs: up to the most there can be, or so that the pass is not empty, since in
        # shards (FSDP) all ranks have to run the same passes; by two, as one row would be compiled anew.
        filling = most - needed if self.static_shapes else 2 * (not needed)
        rows = torch.cat((rows, rows.new_zeros(filling)))
        z_rows, t = z[rows], draws.t[rows]
        y = labels[rows]
        y[:unconditional] = self.null_label
        with torch.no_grad():
            output = network(z_rows, _conditions(t, torch.zeros_like(t), y), heads="u")
        v = self.parameterization.to_velocity(head(output.u), z_rows, t)
        return v[:unconditional], v[unconditional:needed]

    def _guided(self, v: Tensor, rows: Tensor, v_u: Tensor, v_c: Tensor) -> Tensor:
        """``v``, which holds v_t on these rows, with v_g there instead."""
        omega, kappa = self.settings.guidance_scale, self.settings.guidance_mixing
        v_g = omega * v[rows]
        if self.unconditional_factor:
            v_g = v_g + self.unconditional_factor * v_u
        if kappa:
            v_g = v_g + kappa * v_c
        return v.index_copy(0, rows, v_g)

    def _is_guided(self, t: Tensor) -> Tensor:
        """Rows whose target is another than v_t if they keep their label, (B,) bool."""
        if self.settings.guidance_scale == 1 and self.settings.guidance_mixing == 0:
            return torch.zeros_like(t, dtype=torch.bool)
        start, end = self.settings.guidance_interval
        return (t >= start) & (t <= end)


def _conditions(t: Tensor, h: Tensor, labels: Tensor) -> Conditions:
    """What the network is told; a guidance scale and an interval are not among it, so they are those of no guidance."""
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    return Conditions(t=t, h=h, omega=one, t_min=zero, t_max=one, labels=labels)
