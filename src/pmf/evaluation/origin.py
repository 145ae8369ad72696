"""Where generated images come from: the part of a record that lets somebody else generate them again."""

from __future__ import annotations

from typing import Any

from pmf.config.sections import Config
from pmf.flow.objective import create_objective
from pmf.generation.plan import SamplingPlan

ROUNDING = "half to even of (x + 1) / 2 * 255, clipped to 0 ... 255"


def generated_origin(plan: SamplingPlan, config: Config, *, average: str | None, labels: str) -> dict[str, Any]:
    """Weights, seed and settings of the images of a plan.

    Args:
        average: ``online`` or the name of the average that was sampled; None for a file that is what it is.
        labels: as they were asked for: ``all``, or classes separated by commas.
    """
    objective = create_objective(config.objective, num_classes=config.data.num_classes)
    return {
        "weights": plan.weights,
        "ema": average,
        "seed": plan.seed,
        "labels": labels,
        "num_steps": plan.num_steps,
        "omega": plan.omega,
        "interval": list(plan.interval),
        "noise_scale": objective.noise_scale,
        "rounding": ROUNDING,
    }
