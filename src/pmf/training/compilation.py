"""Whether a run is compiled, and why: ``training.compile`` and what the machine, the network and the loss allow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pmf.compilers import missing_for_compilation
from pmf.config.sections import Config
from pmf.errors import UserError
from pmf.flow.objective import Objective
from pmf.net.base import BaseNetwork


@dataclass(frozen=True)
class Compilation:
    """What was decided.

    Attributes:
        reason: for people.
    """

    on: bool
    reason: str

    def __str__(self) -> str:
        return f"{'compiled' if self.on else 'not compiled'}: {self.reason}"


def decide_compilation(config: Config, network: BaseNetwork, objective: Objective[Any, Any]) -> Compilation:
    """What ``training.compile`` means here; ``auto`` leaves out what cannot be.

    Raises:
        UserError: the objective cannot train the network, compiled or not.
    """
    asked = config.training.compile
    if asked != "auto":
        return Compilation(asked, f"training.compile is {str(asked).lower()}")
    obstacle = _obstacle(config, network, objective)
    if obstacle is None:
        return Compilation(True, "training.compile is auto; CUDA, Triton and a C compiler are there")
    return Compilation(False, f"training.compile is auto, and {obstacle}")


def compile_step(network: BaseNetwork, objective: Objective[Any, Any], perceptual: Any, *, static_shapes: bool) -> None:
    """Compile, part by part, what a micro-batch's loss is made of.

    Args:
        perceptual: distances (:class:`pmf.perceptual.distances.PerceptualDistances`), or None.
    """
    network.compile_blocks(static_shapes=static_shapes)
    objective.compile_losses()
    if perceptual is not None:
        perceptual.compile_networks()


def _obstacle(config: Config, network: BaseNetwork, objective: Objective[Any, Any]) -> str | None:
    """Why the run cannot or need not be compiled."""
    if not torch.cuda.is_available():
        return "this is not CUDA"
    if missing := missing_for_compilation(on_gpu=True):
        return f"compilation needs {missing}"
    parallel = config.training.parallel
    before = config.objective.problems(compiled=False, parallel=parallel)
    for key, problem in config.objective.problems(compiled=True, parallel=parallel):
        if (key, problem) not in before:
            return f"objective.{key} {problem}"
    objective.require_network(network, compiled=False, parallel=parallel)
    try:
        objective.require_network(network, compiled=True, parallel=parallel)
    except UserError:
        return f"du/dt of {type(network).__name__}, which carries no tangents, is taken by jvp"
    return None


@contextlib.contextmanager
def failures_in_one_line() -> Iterator[None]:
    """What runs within was compiled, or will be.

    Raises:
        UserError: torch.compile fails.
    """
    try:
        yield
    except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"the training step cannot be compiled ({reason}); set training.compile to false") from error
