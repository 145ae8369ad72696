"""Runs and checkpoints that cannot be gone on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bad_input.cases import Case, cut_off, each, flip_a_bit


def damaged(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Does something to the weights in the copy of the finished run."""
    return lambda folder: change(folder / "run" / "checkpoints" / "step_00000001" / "model.safetensors")


CASES = {
    "resume finds nothing": Case(
        resume="{tmp}/nowhere",
        message="--resume {tmp}/nowhere: there is no such folder; give auto, never, or a checkpoint folder",
    ),
    "resume never": Case(
        continues=True,
        resume="never",
        message="{tmp}/run: holds checkpoints and --resume is never; nothing is overwritten, so choose another "
        "training.output_dir or delete the folder",
    ),
    "truncated checkpoint": Case(
        continues=True,
        prepare=damaged(lambda file: cut_off(file, 9)),
        resume="{tmp}/run/checkpoints/step_00000001",
        message="{tmp}/run/checkpoints/step_00000001: model.safetensors has N bytes instead of N; "
        "use an older checkpoint (--resume PATH)",
    ),
    "altered checkpoint": Case(
        continues=True,
        prepare=damaged(flip_a_bit),
        resume="{tmp}/run/checkpoints/step_00000001",
        message="{tmp}/run/checkpoints/step_00000001: model.safetensors does not match its sha256; use an older "
        "checkpoint (--resume PATH)",
    ),
    "no intact checkpoint": Case(
        continues=True,
        prepare=damaged(Path.unlink),
        message="{tmp}/run: none of its 1 checkpoints is intact; start again in another training.output_dir, or "
        "repair one and name it with --resume PATH",
    ),
    "another network": Case(
        continues=True,
        arguments=("data.image_size=16",),
        resume="{tmp}/run",
        message="{tmp}/run/checkpoints/step_00000001: weights of another network: position_embedding is (1, 36, "
        "32) there and (1, 84, 32) here; check model.name, data.image_size and data.num_classes",
    ),
    "average that is not there": Case(
        continues=True,
        arguments=("ema.half_lives_kimg=[77]", "sampling.ema=77"),
        resume="{tmp}/run",
        message="{tmp}/run/checkpoints/step_00000001: has no average '77'; in the ema section choose from: 0.05, 10",
    ),
    "another optimizer": Case(
        continues=True,
        arguments=("optimizer.name=adamw",),
        message="the optimizer's state is of another run: exp_avg/time_embedding.hidden.weight is "
        "missing; exp_avg_sq/time_embedding.hidden.weight is missing; exp_avg/time_embedding.output.weight is "
        "missing and 93 more; check optimizer.name, model.name, data.image_size and data.num_classes",
    ),
}


@each(CASES)
def test_train(case, training_refused):
    assert training_refused(case) == case.message
