"""What a result file says of generated images: the weights, and everything else that decides what they look like."""

from __future__ import annotations

from typing import Any

from pmf.config.sections import Config
from pmf.flow.objective import create_objective
from pmf.generation.plan import SamplingPlan


def generated_origin(plan: SamplingPlan, config: Config, *, average: str | None, labels: str) -> dict[str, Any]:
    """Plain values about a plan's images.

    Args:
        plan: of the images.
        config: that they are generated with.
        average: which average of the weights; None where nothing but one set of weights was there.
        labels: as the request has them, ``all``, ``blocks`` or classes with commas between.
    """
    objective = create_objective(config.objective, num_classes=config.data.num_classes)
    return {
        "weights": plan.weights,
        "ema": average,
        "seed": plan.seed,
        "labels": labels,
        **plan.settings,
        "noise_scale": objective.noise_scale,
        **plan.decoding,
    }
