"""Which micro-batch gets which rows of a global batch, so that none waits for another.

The cost of a micro-batch depends on its draws: on how many rows need the unconditional velocity, and on how many are
under the perceptual losses. Rows are drawn for the whole global batch at once, independently and alike, so any dealing
that looks at their draws alone (and never at an image) leaves the distribution of the objective as it is. The dealing
is a function of the draws, so every rank finds the same without asking.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pmf.flow.draws import StandardScalars, active_scale, sample_guidance, sample_label_drop, sample_times
from pmf.flow.options import PixelMeanFlowOptions


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """For each row of the global batch, whether it needs v_u and whether it is under the perceptual losses."""

    unconditional: list[bool]
    perceptual: list[bool]

    def most_first(self, rows: Iterable[int]) -> list[int]:
        return sorted(rows, key=lambda row: (not self.unconditional[row], not self.perceptual[row]))


@dataclass
class _Hand:
    """A micro-batch while it is dealt.

    Its rows, the number of rows still missing, and how many of its rows need v_u or the perceptual losses.
    """

    rows: list[int]
    room: int
    unconditional: int
    perceptual: int = 0


def deal(
    scalars: StandardScalars,
    settings: PixelMeanFlowOptions,
    perceptual_max_t: float,
    num_micro_batches: int,
    wanted: Sequence[int],
) -> list[StandardScalars]:
    """Deal the rows of a global batch to its micro-batches.

    Args:
        scalars: of all rows, a multiple of ``num_micro_batches``.
        perceptual_max_t: rows with t below it are under the perceptual losses.
        wanted: numbers of the micro-batches to return.

    Returns:
        The rows of each micro-batch that is wanted; of all together, a permutation of the rows given. Between
        micro-batches the numbers of rows that need the unconditional velocity differ by at most one, so do those of
        dropped labels (unless each row drops its own), and those of perceptual rows as far as that leaves a choice.
    """
    size = scalars.normal_t.shape[0] // num_micro_batches
    num_flow_matching = int(size * settings.data_proportion)
    first_other = num_micro_batches * num_flow_matching
    needs = _needs(scalars, settings, perceptual_max_t, first_other)
    drop_first = settings.label_drop_rows == "first"
    # "first" drops the labels of a micro-batch's first rows, so only the number of drops has to be dealt.
    drops = scalars.uniform_drop.sort().values
    total = int((drops < settings.label_drop).sum()) if drop_first else 0
    num_dropped = [len(range(number, total, num_micro_batches)) for number in range(num_micro_batches)]
    micro_batches = [
        _Hand(rows=[], room=num_flow_matching, unconditional=max(0, num_flow_matching - count) * drop_first)
        for count in num_dropped
    ]
    _give(micro_batches, needs, needs.most_first(range(first_other)))
    for micro_batch in micro_batches:
        micro_batch.rows.sort()
        micro_batch.room = size - num_flow_matching
    # More drops than flow-matching rows: the rest fall on other rows, taken in order so that no choice biases them.
    next_row = first_other
    for micro_batch, count in zip(micro_batches, num_dropped, strict=True):
        surplus = range(next_row, next_row + max(0, count - num_flow_matching))
        micro_batch.rows += surplus
        micro_batch.room -= len(surplus)
        micro_batch.perceptual += sum(needs.perceptual[row] for row in surplus)
        next_row = surplus.stop
    _give(micro_batches, needs, needs.most_first(range(next_row, len(needs.perceptual))))

    dealt = []
    for number in wanted:
        rows = micro_batches[number].rows
        start = max(num_flow_matching, num_dropped[number])
        order = rows[:start] + sorted(rows[start:])
        own = {name: values[order] for name, values in vars(scalars).items()}
        if drop_first:
            own["uniform_drop"] = drops[number::num_micro_batches]
        dealt.append(StandardScalars(**own))
    return dealt


def _needs(
    scalars: StandardScalars, settings: PixelMeanFlowOptions, perceptual_max_t: float, num_flow_matching: int
) -> _Needs:
    """What each row needs.

    Under ``label_drop_rows: first`` it is not settled here which flow-matching rows need v_u.
    """
    times = sample_times(scalars, settings, num_flow_matching)
    guidance = sample_guidance(scalars, settings, num_flow_matching)
    guided = active_scale(guidance.omega, times.t, guidance.t_min, guidance.t_max) != 1
    if settings.label_drop_rows == "first":
        guided[:num_flow_matching] = False
    else:
        guided[sample_label_drop(scalars, settings)] = False
    return _Needs(unconditional=guided.tolist(), perceptual=(times.t < perceptual_max_t).tolist())


def _give(micro_batches: list[_Hand], needs: _Needs, rows: list[int]) -> None:
    """Each row to the micro-batch that has least of what it needs, and room for it."""
    for unconditional in (True, False):
        heap = [
            (unconditional and m.unconditional, m.perceptual, number)
            for number, m in enumerate(micro_batches)
            if m.room
        ]
        heapq.heapify(heap)
        for row in rows:
            if needs.unconditional[row] != unconditional:
                continue
            number = heapq.heappop(heap)[2]
            m = micro_batches[number]
            m.rows.append(row)
            m.room -= 1
            m.unconditional += unconditional
            m.perceptual += needs.perceptual[row]
            if m.room:
                heapq.heappush(heap, (unconditional and m.unconditional, m.perceptual, number))
