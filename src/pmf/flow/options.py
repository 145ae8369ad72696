"""The options of each method, as in the objective section of its configs, and the table of samplers. Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import FiniteFloat

from pmf.flow.objective import ObjectiveOptions
from pmf.options import Fraction, NonNegativeFloat, PositiveFloat
from pmf.tables import Row

# A new way from noise to an image is a line here: a function like pmf.flow.sampler.equal_steps.
SAMPLERS: dict[str, Row] = {"equal_steps": "pmf.flow.sampler:equal_steps"}


class PixelMeanFlowOptions(ObjectiveOptions):
    """Pixel mean flows: times, noise, guidance, weighting. The defaults are those of the paper's pMF-B/16."""

    takes_perceptual: ClassVar[bool] = True
    name: Literal["pmf"] = "pmf"
    """Pixel mean flows (arXiv 2601.22158)."""

    parameterization: Literal["x", "u", "linear", "edm", "scm"] = "x"
    """What the heads predict: the image (the paper's choice), the velocity, or the image behind a pre-conditioner."""
    derivative: Literal["auto", "jvp", "dual"] = "auto"
    """How du/dt is taken: torch.func.jvp, tangents beside the primal, or auto: dual if the network can, else jvp."""
    data_proportion: Fraction = 0.5
    """Share of each micro-batch trained as plain flow matching (r = t)."""
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
    guidance_beta: NonNegativeFloat = 1.0
    """Exponent of the power law of training guidance scales; larger favours small scales."""
    guidance_max: PositiveFloat = 7.0
    """Training guidance scales lie in [1, 1 + guidance_max]."""
    label_drop: Fraction = 0.1
    """Probability of the null label."""
    label_drop_rows: Literal["first", "any"] = "first"
    """Which rows lose it: the first ones, as many as a drawn count (as released), or any, each drawn by itself."""
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
