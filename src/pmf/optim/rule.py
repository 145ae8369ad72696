"""What a rule of an optimizer is: how a group of parameters moves, given gradients and what is remembered of them.

A new rule is a class here or in a file of its own, and a row of ``RULES`` in pmf/optim/options.py. Which tensors there
are, where they are kept, and among which processes they are divided is the work of pmf/optim/optimizer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pmf.optim.options import RULES
from pmf.tables import find_row

Settings = Mapping[str, Any]
"""``lr``, ``momentum``, ``betas``, ``eps``, ``weight_decay``, ``newton_schulz_dtype``, and ``step``: this update is
number 1, 2, ..."""
Moments = Mapping[str, list[Tensor]]
"""By their names, one tensor for each parameter, all starting at 0; a rule overwrites them in place."""


class Rule:
    """Moves tensors element by element; all that a subclass needs is :attr:`moments` and :meth:`update`.

    Tensors may be parts of the parameters, so that a rule must not ask for shapes, norms or means.
    """

    moments: tuple[str, ...] = ()
    """What is remembered of each parameter, each of the parameter's shape; the names are those in checkpoints."""

    def update(self, settings: Settings, weights: list[Tensor], gradients: list[Tensor], moments: Moments) -> None:
        """Overwrite weights and moments by one update; the gradients stay as they are.

        Weight decay has been applied to the weights already. Written with ``torch._foreach`` operations, an update
        costs few kernels on a GPU.
        """
        raise NotImplementedError


class MatrixRule:
    """Moves matrices (out, in), as ``nn.Linear`` has them, by directions that need all of a matrix.

    weights -= lr * factor(out, in) * direct(advance(gradients)). Each of the three methods below is one part of that.
    """

    moments: tuple[str, ...] = ()
    """See :attr:`Rule.moments`."""
    rest: str
    """Name of the rule, a row of ``RULES``, that moves the parameters that are not weights of linear layers."""

    def advance(self, settings: Settings, gradients: list[Tensor], moments: Moments) -> list[Tensor]:
        """Overwrite the moments and return what :meth:`direct` takes, element by element: tensors may be parts."""
        raise NotImplementedError

    def direct(self, settings: Settings, matrices: Tensor) -> Tensor:
        """The directions of whole matrices of one shape, (N, out, in) to (N, out, in)."""
        raise NotImplementedError

    def factor(self, rows: int, columns: int) -> float:
        """What the learning rate of a matrix of this shape is multiplied with; 1 where shapes do not matter."""
        raise NotImplementedError


def create_rule(name: str) -> Rule | MatrixRule:
    """The rule of a row of ``RULES``."""
    return find_row(RULES, name)()


def decay(settings: Settings, weights: list[Tensor]) -> None:
    """Decoupled weight decay, in place: ``weights *= 1 - lr weight_decay``."""
    if settings["weight_decay"]:
        torch._foreach_mul_(weights, 1 - settings["lr"] * settings["weight_decay"])
