"""The pixel mean flow step: pMF, arXiv 2601.22158, section 3 and algorithm 1 (official pmf.py, forward).

The algorithm is that of iMF (improved_mean_flow.py) on pixels, with another network output and one more term:

    t, r     drawn: two logit-normal times, r := t on F rows, and only then sorted            sample_times
    e        drawn: noise, of standard deviation noise_scale
    z, v_c, v_u, v_g, V as in iMF, but each velocity is that of an image: the network predicts the image,
             and to_velocity makes (z - image) / t of it
    v_t  = (z - x) / t              the velocity of the true image, through the same map      true_velocity
    loss = |V - v_g|^2 + |v - v_g|^2, each divided by stopgrad(itself + epsilon)^p            velocity_terms
           + distances of the denoised image z - t u from x, on rows with small t             _perceptual

To change the loss, change this file.
"""

from __future__ import annotations

from torch import Tensor

from pmf.flow.draws import Draws, StandardScalars, Times, mixed_times
from pmf.flow.improved_mean_flow import Fields, ImprovedMeanFlow
from pmf.flow.objective import LossTerms, PerceptualDistances
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.parameterization import create_parameterization, per_image
from pmf.net.interface import Network


class PixelMeanFlow(ImprovedMeanFlow):
    """The objective of pMF, and of its ablations; see :class:`pmf.flow.objective.Objective`."""

    recordable = True
    settings: PixelMeanFlowOptions

    def __init__(
        self,
        settings: PixelMeanFlowOptions,
        *,
        num_classes: int,
        perceptual: PerceptualDistances | None = None,
        perceptual_max_t: float = 1.0,
        **filling: bool,
    ) -> None:
        super().__init__(settings, num_classes=num_classes, **filling)
        self.noise_scale = settings.noise_scale
        self.drops_first_rows = settings.label_drop_rows == "first"
        self.perceptual = perceptual
        self.perceptual_max_t = perceptual_max_t
        self.parameterization = create_parameterization(settings.parameterization, settings.noise_scale)

    def sample_times(self, scalars: StandardScalars, num_flow_matching: int) -> Times:
        """r := t on the flow-matching rows, then sorted."""
        return mixed_times(scalars, self.settings, num_flow_matching)

    def perceptual_rows(self, times: Times) -> Tensor:
        """None where nobody asks for them and another number would be another size."""
        rows = super().perceptual_rows(times)
        return rows[:0] if self.perceptual is None and self.filling.few_sizes else rows

    def loss(self, network: Network, images: Tensor, labels: Tensor, draws: Draws) -> LossTerms:
        """The loss of one micro-batch.

        Returns:
            As for :class:`ImprovedMeanFlow`, with a part more: weighted_perceptual, after the adaptive weight.
        """
        fields = self.evaluate(network, images, labels, draws)
        parts, logs = self.velocity_terms(fields)
        parts["weighted_perceptual"] = self._perceptual(fields, images, draws, logs)
        total = (parts["weighted_u"] + parts["weighted_v"] + parts["weighted_perceptual"]).mean()
        return LossTerms(total=total, logs={"loss": total.detach(), **logs}, parts=parts)

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
            logs[f"loss_{name}"] = (draws.perceptual_weight * distance.detach()).sum() / images.shape[0]
            weighted = draws.perceptual_weight * self.adaptive(distance)
            total = total.index_add(0, rows, factors[name] * weighted)
        return total
