"""Rows that nobody needs, so that passes come in a few sizes.

How many rows the guidance pass has, and how many are under perceptual losses, varies with the draws. A compiler, cuDNN
and CUDA graphs prepare each number of rows that they have not seen, which takes from a tenth of a second to minutes. So
these passes are filled up to the next of a few sizes with rows whose results have the weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS_OF_A_MICRO_BATCH = 32
"""The sizes lie this part of a micro-batch apart. Smaller steps fill less and make more sizes; docs/performance.md."""


@dataclass(frozen=True, kw_only=True)
class Filling:
    """How many rows the passes of a micro-batch are given.

    Attributes:
        static_shapes: the guidance pass always has as many rows as it can need at most.
        few_sizes: numbers of rows are rounded up to a few sizes.
    """

    static_shapes: bool = False
    few_sizes: bool = False

    @property
    def least(self) -> int:
        """Rows that a part of a pass must have: compilers prepare no row and one row each for itself."""
        return 2 if self.few_sizes else 0

    def guidance(self, needed: int, most: int, micro_batch: int) -> int:
        """Rows of a guidance pass that needs so many in this micro-batch, and at most ``most`` in any.

        Where it needs none it has two: in shards (FSDP) all ranks have to run the same passes, and one row would be
        compiled anew.
        """
        return most if self.static_shapes else self._rounded(needed or 2, micro_batch)

    def perceptual(self, needed: int, micro_batch: int) -> int:
        """Rows that the perceptual networks are given, if so many have a distance; none if none has."""
        return self._rounded(needed, micro_batch)

    def _rounded(self, needed: int, micro_batch: int) -> int:
        step = max(2, micro_batch // STEPS_OF_A_MICRO_BATCH) if self.few_sizes else 1
        return -(-needed // step) * step


def fill(rows: Tensor, size: int) -> Tensor:
    """Row numbers, (N,), then the first of them (0 where there is none) again and again: (size,)."""
    again = int(rows[0]) if len(rows) else 0
    return torch.cat((rows, rows.new_full((size - len(rows),), again)))


def weigh(weights: Tensor, size: int) -> Tensor:
    """Weights of the rows that are needed, (N,), and 0 for those that fill: (size,)."""
    return torch.cat((weights, weights.new_zeros(size - len(weights))))
