"""What a rule of an optimizer is: how a group of parameters moves, given gradients and what is remembered of them.

A new rule is a class here or in a file of its own, and a row of ``RULES`` in pmf/optim/options.py. Which tensors there
are, where they are kept, and among which processes they are divided is the work of pmf/optim/optimizer.py. What
``training.cuda_graph: step`` records of a rule is its operations: a number of the host stays what it was, so that all
that changes from update to update comes as a rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pmf.optim.options import RULES
from pmf.optim.rates import Rates
from pmf.tables import find_row

CONSTANTS = ("momentum", "betas", "eps", "weight_decay", "newton_schulz_dtype")
Settings = Mapping[str, Any]
"""The ``CONSTANTS`` of a parameter group: the same in every update."""
Moments = Mapping[str, list[Tensor]]
"""By their names, one tensor for each parameter, all starting at 0; a rule overwrites them in place."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What one update of a parameter group is told.

    Attributes:
        settings: those of the group.
        rates: ``lr``, ``weights_kept`` (1 - lr weight_decay), and those of the rule.
    """

    settings: Settings
    rates: Rates


class _AnyRule:
    """What both kinds of rules say of themselves."""

    moments: tuple[str, ...] = ()
    """What is remembered of each parameter, each of the parameter's shape; the names are those in checkpoints."""

    def rates(self, settings: Settings, lr: float, step: int) -> dict[str, float]:  # noqa: ARG002  # many have none
        """The numbers that change from update to update, beside the learning rate: bias corrections and the like.

        They are computed on the host, and handed to the methods below together with ``lr``.

        Args:
            lr: learning rate of this update.
            step: this update is number 1, 2, ...

        Returns:
            By names of the rule's own, the same names in every update.
        """
        return {}


class Rule(_AnyRule):
    """Moves tensors element by element; all that a subclass needs is :attr:`moments` and :meth:`update`.

    Tensors may be parts of the parameters, so that a rule must not ask for shapes, norms or means.
    """

    def update(
        self, settings: Settings, rates: Rates, weights: list[Tensor], gradients: list[Tensor], moments: Moments
    ) -> None:
        """Overwrite weights and moments by one update; the gradients stay as they are.

        Weight decay has been applied to the weights already. Written with ``torch._foreach`` operations, an update
        costs few kernels on a GPU. A rate may be a number or a tensor; pmf/optim/rates.py has the operations for both.

        Args:
            rates: ``lr``, and those of :meth:`rates`.
        """
        raise NotImplementedError


class MatrixRule(_AnyRule):
    """Moves matrices (out, in), as ``nn.Linear`` has them, by directions that need all of a matrix.

    weights -= lr * factor(out, in) * direct(advance(gradients)). Each of the three methods below is one part of that.
    """

    rest: str
    """Name of the rule, a row of ``RULES``, that moves the parameters that are not weights of linear layers."""

    def advance(self, settings: Settings, rates: Rates, gradients: list[Tensor], moments: Moments) -> list[Tensor]:
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
