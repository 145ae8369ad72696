"""The options of each method, as in the objective section of its configs, and the table of samplers. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import FiniteFloat

from pmf.flow.objective import ObjectiveOptions
from pmf.options import Decay, Fraction, Interval, NonNegativeFloat, PositiveFloat
from pmf.tables import Row

# A new way from noise to an image is a line here: a function like pmf.flow.sampler.equal_steps.
SAMPLERS: dict[str, Row] = {"equal_steps": "pmf.flow.sampler:equal_steps"}


class AverageVelocityOptions(ObjectiveOptions):
    """What all methods have that train the average velocity: times, derivative, label drop, weighting."""

    derivative: Literal["auto", "jvp", "dual"] = "auto"
    """How du/dt is taken: torch.func.jvp, tangents beside the primal, or auto: dual if the network can, else jvp."""
    data_proportion: Fraction = 0.5
    """Share of each micro-batch trained as plain flow matching (r = t)."""
    time_mean: FiniteFloat = -0.4
    """Mean of the normal under the logit-normal time distribution (P_mean)."""
    time_std: PositiveFloat = 1.0
    """Its standard deviation (P_std)."""
    label_drop: Fraction = 0.1
    """Probability of the null label."""
    adaptive_power: NonNegativeFloat = 1.0
    """Exponent p of the adaptive weight 1 / (loss + epsilon)^p."""
    adaptive_epsilon: PositiveFloat = 0.01
    """The epsilon of the adaptive weight."""

    def problems(self, *, compiled: bool, parallel: str) -> list[tuple[str, str]]:
        """See :class:`ObjectiveOptions`: torch.func.jvp runs on plain modules alone."""
        found = []
        if compiled and self.derivative == "jvp":
            found.append(("derivative", "is jvp, which cannot pass compiled blocks; use dual or auto"))
        if parallel != "ddp" and self.derivative == "jvp":
            found.append(("derivative", "is jvp, which needs training.parallel: ddp; use dual or auto"))
        return found

    def countable(self) -> Self:
        """See :class:`ObjectiveOptions`: torch.func.jvp needs contents; the network's own tangents stand in for it."""
        return self.model_copy(update={"derivative": "auto"})


class MeanFlowOptions(AverageVelocityOptions):
    """Mean flows: times, guidance that is trained in, weighting. The defaults are the paper's without guidance."""

    fixed_sampling: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "omega": (1.0, "trains its guidance in (objective.guidance_scale)"),
        "interval": ([0.0, 1.0], "trains its guidance in (objective.guidance_interval)"),
    }
    name: Literal["meanflow"] = "meanflow"
    """Mean flows (arXiv 2505.13447)."""

    data_proportion: Fraction = 0.75
    """Share of each micro-batch trained as plain flow matching (r = t)."""
    time_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    """How t and r are drawn; time_mean and time_std are for logit_normal."""
    guidance_scale: PositiveFloat = 1.0
    """Share omega of the true velocity in the guided one; the effective scale is omega / (1 - kappa), 1 no guidance."""
    guidance_mixing: Decay = 0.0
    """Share kappa of the network's own conditional velocity in it."""
    guidance_interval: Interval = (0.0, 1.0)
    """Interval [t_start, t_end] of t in which the target is guided."""

    def problems(self, *, compiled: bool, parallel: str) -> list[tuple[str, str]]:
        """See :class:`ObjectiveOptions`: as for all of the family, and an interval from end to start."""
        found = super().problems(compiled=compiled, parallel=parallel)
        start, end = self.guidance_interval
        if start >= end:
            found.append(
                ("guidance_interval", f"is [{start}, {end}]; it must be [t_start, t_end] with t_start < t_end")
            )
        return found


class DrawnGuidanceOptions(AverageVelocityOptions):
    """What the methods have whose network is told the guidance scale and interval, so that training draws them."""

    guidance_beta: NonNegativeFloat = 1.0
    """Exponent of the power law of training guidance scales; larger favours small scales."""
    guidance_max: PositiveFloat = 7.0
    """Training guidance scales lie in [1, 1 + guidance_max]."""


class ImprovedMeanFlowOptions(DrawnGuidanceOptions):
    """Improved mean flows: times, guidance, weighting. The defaults are those of the released configuration."""

    name: Literal["imf"] = "imf"
    """Improved mean flows (arXiv 2512.02012)."""


class PixelMeanFlowOptions(DrawnGuidanceOptions):
    """Pixel mean flows: times, noise, guidance, weighting. The defaults are those of the paper's pMF-B/16."""

    takes_perceptual: ClassVar[bool] = True
    name: Literal["pmf"] = "pmf"
    """Pixel mean flows (arXiv 2601.22158)."""

    parameterization: Literal["x", "u", "linear", "edm", "scm"] = "x"
    """What the heads predict: the image (the paper's choice), the velocity, or the image behind a pre-conditioner."""
    r_distribution: Literal["drawn", "zero"] = "drawn"
    """r of the other rows: drawn like t, or always 0 (an ablation)."""
    time_mean: FiniteFloat = 0.8
    """Mean of the normal under the logit-normal time distribution (P_mean)."""
    time_std: PositiveFloat = 0.8
    """Its standard deviation (P_std)."""
    uniform_time_fraction: Fraction = 0.0
    """Probability that a row's t and r are uniform instead (0.1 in the recipe of the H models)."""
    noise_scale: PositiveFloat = 1.0
    """Standard deviation of the noise at t = 1, in units of the [-1, 1] image range."""
    label_drop_rows: Literal["first", "any"] = "first"
    """Which rows lose it: the first ones, as many as a drawn count (as released), or any, each drawn by itself."""
