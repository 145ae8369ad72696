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
from pmf.flow.filling import fill
from pmf.flow.objective import LossTerms
from pmf.flow.options import MeanFlowOptions
from pmf.flow.parameterization import per_image
from pmf.flow.transfer import move_together
from pmf.net.interface import Conditions, Network, head


@dataclass(frozen=True, kw_only=True)
class GuidedRows(TimeDraws):
    """The draws of a micro-batch.

    Attributes:
        guided: (B,) bool: rows that keep their label and whose t is in the guidance interval; none where v_g = v_t
            everywhere.
        own_rows: (R,) int64: rows of the guidance pass: those of v_u, those of v_c, then rows that only fill it.
        own_unlabelled: (R,) bool: those of v_u.
        place_of_v_u, place_of_v_c: (B,) int64: where in the pass a row's velocity is; anywhere, if it has none there.
    """

    guided: Tensor
    own_rows: Tensor
    own_unlabelled: Tensor
    place_of_v_u: Tensor
    place_of_v_c: Tensor


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
    recordable = True
    compiled_methods = ("_mix", "_guided", "_terms")

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
        with_v_u = guided & bool(self.unconditional_factor)
        with_v_c = guided & (torch.arange(len(guided)) >= F) & bool(self.settings.guidance_mixing)
        rows = torch.cat((with_v_u.nonzero()[:, 0], with_v_c.nonzero()[:, 0]))
        own_rows = fill(rows, self._rows_of_pass(len(rows), len(guided), F))
        number_of_v_u = int(with_v_u.sum())
        tensors = {
            **vars(times),
            "dropped": dropped,
            "guided": guided,
            "own_rows": own_rows,
            "own_unlabelled": torch.arange(len(own_rows)) < number_of_v_u,
            "place_of_v_u": _places(with_v_u, 0),
            "place_of_v_c": _places(with_v_c, number_of_v_u),
        }
        moved = move_together(tensors, standard.normal_e.device)
        return GuidedRows(e=standard.normal_e, num_flow_matching=F, **moved)

    def _rows_of_pass(self, needed: int, micro_batch: int, num_flow_matching: int) -> int:
        """Rows of the guidance pass; 0 if the settings never need one."""
        most = bool(self.unconditional_factor) * micro_batch
        most += bool(self.settings.guidance_mixing) * (micro_batch - num_flow_matching)
        return self.filling.guidance(needed, most, micro_batch) if most else 0

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
        raw_u, weighted_u, raw_v = self._terms(fields)
        total = weighted_u.mean()
        logs = {
            "loss": total.detach(),
            "loss_u": raw_u.detach().mean() / images[0].numel(),
            "loss_v": raw_v.mean() / images[0].numel(),
        }
        return LossTerms(total=total, logs=logs, parts={"raw_u": raw_u, "weighted_u": weighted_u, "raw_v": raw_v})

    def evaluate(self, network: Network, images: Tensor, labels: Tensor, draws: GuidedRows) -> Fields:
        """Run the network where the loss needs it; see :meth:`loss` for the arguments."""
        t, r, F = draws.t, draws.r, draws.num_flow_matching
        z, v_t = self._mix(images, draws)
        own = self._own(network, z, labels, draws)
        v_g_others = self._guided(v_t, own, draws, slice(F, None))  # not flow matching
        conditions = _conditions(t, t - r, labels.masked_fill(draws.dropped, self.null_label))
        along = (v_g_others, 0.0, 1.0)
        u, _, du_dt = self.derivative(network, self.parameterization, z, conditions, along, self.heads)
        v_g_first = self._guided(v_t, own, draws, slice(0, F), v_c=u[:F].detach())
        # The official code clips t - r to [0, 1], where these times are anyway.
        target = torch.cat((v_g_first, v_g_others - per_image((t - r)[F:]) * du_dt))
        v_g = torch.cat((v_g_first, v_g_others))
        return Fields(z=z, v_t=v_t, v_g=v_g, u=u, du_dt=du_dt, target=target)

    def _mix(self, x: Tensor, draws: GuidedRows) -> tuple[Tensor, Tensor]:
        """z and v_t."""
        z = noisy(x, draws.e, draws.t)
        return z, self.parameterization.true_velocity(x, draws.e, z, draws.t)

    def _terms(self, fields: Fields) -> tuple[Tensor, Tensor, Tensor]:
        """raw_u, weighted_u and raw_v of :meth:`loss`."""
        raw_u = (fields.u - fields.target).square().sum((1, 2, 3))
        raw_v = (fields.u.detach() - fields.v_t).square().sum((1, 2, 3))
        return raw_u, self.adaptive(raw_u), raw_v

    def _own(self, network: Network, z: Tensor, labels: Tensor, draws: GuidedRows) -> Tensor | None:
        """The network's own velocities at t, of ``draws.own_rows``, without gradient; None without such rows."""
        rows = draws.own_rows
        if not len(rows):
            return None
        z_rows, t = z[rows], draws.t[rows]
        y = labels[rows].masked_fill(draws.own_unlabelled, self.null_label)
        with torch.no_grad():
            output = network(z_rows, _conditions(t, torch.zeros_like(t), y), heads="u")
        return self.parameterization.to_velocity(head(output.u), z_rows, t)

    def _guided(
        self, v_t: Tensor, own: Tensor | None, draws: GuidedRows, part: slice, v_c: Tensor | None = None
    ) -> Tensor:
        """v_g of a part of the rows.

        Args:
            own: what :meth:`_own` found.
            v_c: of these rows; None takes it from ``own``.
        """
        v_t = v_t[part]
        omega, kappa = self.settings.guidance_scale, self.settings.guidance_mixing
        if own is None and (v_c is None or not kappa):
            return v_t
        v_g = omega * v_t
        if own is not None and self.unconditional_factor:
            v_g = v_g + self.unconditional_factor * own[draws.place_of_v_u[part]]
        if kappa:
            if v_c is None:
                assert own is not None
                v_c = own[draws.place_of_v_c[part]]
            v_g = v_g + kappa * v_c
        return torch.where(per_image(draws.guided[part]), v_g, v_t)

    def _is_guided(self, t: Tensor) -> Tensor:
        """Rows whose target is another than v_t if they keep their label, (B,) bool."""
        if self.settings.guidance_scale == 1 and self.settings.guidance_mixing == 0:
            return torch.zeros_like(t, dtype=torch.bool)
        start, end = self.settings.guidance_interval
        return (t >= start) & (t <= end)


def _places(rows: Tensor, first: int) -> Tensor:
    """Where rows that are marked, (B,) bool, stand if they are counted from ``first``; (B,), 0 for the others."""
    return torch.where(rows, rows.cumsum(0) - 1 + first, 0)


def _conditions(t: Tensor, h: Tensor, labels: Tensor) -> Conditions:
    """What the network is told; a guidance scale and an interval are not among it, so they are those of no guidance."""
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    return Conditions(t=t, h=h, omega=one, t_min=zero, t_max=one, labels=labels)
