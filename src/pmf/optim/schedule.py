"""Learning rates as pure functions of the number of updates already made.

The first update is made at count 0, so with a warm-up its rate is 0 (pMF utils/trainstate_util.py; optax schedules).
"""

from __future__ import annotations

import math

from pmf.errors import UserError
from pmf.optim.options import SCHEDULES, OptimizerConfig
from pmf.tables import find_row


def learning_rate(config: OptimizerConfig, updates_made: int, total_steps: int) -> float:
    """Rate of the next update, as the schedule says that ``config.schedule`` names.

    A schedule is a function of these three arguments.

    Args:
        updates_made: updates before it, >= 0.
        total_steps: updates in the whole run, > 0.

    Raises:
        UserError: a cosine that has no steps left after its warm-up.
    """
    return find_row(SCHEDULES, config.schedule)(config, updates_made, total_steps)


def constant(config: OptimizerConfig, _updates_made: int, _total_steps: int) -> float:
    """The peak rate, always."""
    return config.lr


def warmup_constant(config: OptimizerConfig, updates_made: int, _total_steps: int) -> float:
    """Linear from 0 to the peak over ``warmup_steps``, then the peak."""
    if updates_made < config.warmup_steps:
        return config.lr * updates_made / config.warmup_steps
    return config.lr


def warmup_cosine(config: OptimizerConfig, updates_made: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine down to ``min_lr_factor * lr``, then that floor.

    The official code takes the warm-up off the total before it calls
    ``optax.warmup_cosine_decay_schedule``, which takes it off again: the floor is reached at
    ``total_steps - warmup_steps``. Reproduced, because the official runs had it.

    Raises:
        UserError: ``total_steps <= 2 * warmup_steps``, which leaves the cosine no steps.
    """
    decay_steps = total_steps - 2 * config.warmup_steps
    if decay_steps <= 0:
        raise UserError(
            f"optimizer.warmup_steps is {config.warmup_steps}, but warmup_cosine needs more than twice that many "
            f"steps and the run has {total_steps}; use at most {(total_steps - 1) // 2}, or schedule: warmup_constant"
        )
    if updates_made < config.warmup_steps:
        return config.lr * updates_made / config.warmup_steps
    progress = min((updates_made - config.warmup_steps) / decay_steps, 1.0)
    floor = config.min_lr_factor * config.lr
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))
