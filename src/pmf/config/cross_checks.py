"""Checks of a config across its sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pmf.data.options import section_problems
from pmf.distributed.batching import nearest_divisors

if TYPE_CHECKING:
    from pmf.config.sections import Config


def cross_field_problems(config: Config, ema_names: Sequence[str]) -> list[tuple[str, str]]:
    """Values that are fine alone and wrong together: the key to point at, and what is wrong with it."""
    problems: list[tuple[str, str]] = []
    training, optimizer, sampling = config.training, config.optimizer, config.sampling
    if (training.max_steps is None) == (training.epochs is None):
        problems.append(("training.max_steps", "or training.epochs must be given, and not both"))
    micro = training.micro_batch_size
    if micro is not None and training.global_batch_size % micro:
        problems.append(
            (
                "training.micro_batch_size",
                f"is {micro}, which does not divide training.global_batch_size {training.global_batch_size}; "
                f"nearest divisors: {nearest_divisors(training.global_batch_size, micro)}",
            )
        )
    if sampling.interval[0] >= sampling.interval[1]:
        bounds = list(sampling.interval)
        problems.append(("sampling.interval", f"is {bounds}; it must be [t_min, t_max] with t_min < t_max"))
    if optimizer.schedule == "constant" and optimizer.warmup_steps:
        problems.append(("optimizer.warmup_steps", "needs optimizer.schedule: warmup_constant or warmup_cosine"))
    if training.max_steps is not None and optimizer.warmup_steps > training.max_steps:
        problems.append(
            (
                "optimizer.warmup_steps",
                f"is {optimizer.warmup_steps}, more than training.max_steps {training.max_steps}; lower it",
            )
        )
    of_objective = config.objective.problems(compiled=training.compile, parallel=training.parallel)
    problems += [(f"objective.{key}", problem) for key, problem in of_objective]
    if training.parallel != "ddp" and training.mixed_precision == "fp16":
        problems.append(("training.mixed_precision", "is fp16, which needs training.parallel: ddp; use bf16 or no"))
    if training.shard_size and training.parallel != "hsdp":
        problems.append(("training.shard_size", f"needs training.parallel: hsdp; it is {training.parallel}"))
    problems += section_problems(config.data)
    if config.evaluation.every_images and not config.evaluation.reference:
        problems.append(("evaluation.reference", "is missing; evaluation.every_images needs something to compare with"))
    if len(set(ema_names)) != len(ema_names):
        problems.append(("ema.half_lives_kimg", f"and ema.decays name one average twice: {', '.join(ema_names)}"))
    if sampling.ema not in (*ema_names, "online"):
        problems.append(("sampling.ema", f'is "{sampling.ema}"; choose one of: {", ".join((*ema_names, "online"))}'))
    return problems
