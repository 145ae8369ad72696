"""Which micro-batch gets which rows of a global batch, so that none waits for another.

The cost of a micro-batch depends on its draws: on how many rows its guidance pass has, and on how many rows are under
the perceptual losses. Rows are drawn for the whole global batch at once, independently and alike, so any dealing
that looks at their draws alone (and never at an image) leaves the distribution of the objective as it is. The dealing
is a function of the draws, so every rank finds the same without asking.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pmf.flow.draws import StandardScalars


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each row of the global batch asks for beyond the training pass.

    Attributes:
        guidance: rows that it adds to the guidance pass if it keeps its label.
        perceptual: whether it is under the perceptual losses.
        every_flow_matching: where it is the same for all flow-matching rows, what each that keeps its label adds to
            the guidance pass, beyond ``guidance``.
    """

    guidance: list[int]
    perceptual: list[bool]
    every_flow_matching: int = 0

    def most_first(self, rows: Iterable[int]) -> list[int]:
        """Rows in the order in which they are dealt."""
        return sorted(rows, key=lambda row: (-self.guidance[row], not self.perceptual[row]))


@dataclass
class _Hand:
    """A micro-batch while it is dealt.

    Its rows, the number of rows still missing, the rows of its guidance pass, and how many are under the perceptual
    losses.
    """

    guidance: int
    rows: list[int] = field(default_factory=list)
    room: int = 0
    perceptual: int = 0

    def take(self, rows: range, work: Work) -> None:
        """Rows that lose their label."""
        self.rows += rows
        self.room -= len(rows)
        self.perceptual += sum(work.perceptual[row] for row in rows)


def deal(
    scalars: StandardScalars,
    work: Work,
    num_flow_matching: int,
    label_drop: float,
    num_micro_batches: int,
    wanted: Sequence[int],
) -> list[StandardScalars]:
    """Deal the rows of a global batch to its micro-batches.

    Args:
        scalars: of all rows, a multiple of ``num_micro_batches``; those of all flow-matching rows first.
        work: of these rows.
        num_flow_matching: of each micro-batch.
        label_drop: probability that a row loses its label, where as many first rows of a micro-batch do; 0 where each
            row drops its own, which ``work`` knows.
        wanted: numbers of the micro-batches to return.

    Returns:
        The rows of each micro-batch that is wanted; of all together, a permutation of the rows given. Between
        micro-batches the rows of the guidance pass differ by no more than a single row adds, the numbers of dropped
        labels by at most one (unless each row drops its own), and those of perceptual rows as far as that leaves a
        choice.
    """
    # The labels of a micro-batch's first rows are dropped, so only the number of drops has to be dealt.
    drops = scalars.uniform_drop.sort().values
    total = int((drops < label_drop).sum())
    num_dropped = [len(range(number, total, num_micro_batches)) for number in range(num_micro_batches)]
    micro_batches = [
        _Hand(guidance=max(0, num_flow_matching - count) * work.every_flow_matching) for count in num_dropped
    ]
    first_other = num_micro_batches * num_flow_matching
    # Among flow-matching rows that are all alike there is no choice, and none has to be taken before the others.
    alike = not any(work.guidance[:first_other])
    of_flow_matching = [0 if alike else min(count, num_flow_matching) for count in num_dropped]
    _deal_kind(micro_batches, work, range(first_other), of_flow_matching)
    for micro_batch in micro_batches:
        micro_batch.rows.sort()
    # More drops than flow-matching rows: the rest fall on other rows.
    of_others = [max(0, count - num_flow_matching) for count in num_dropped]
    _deal_kind(micro_batches, work, range(first_other, len(work.guidance)), of_others)

    dealt = []
    for number in wanted:
        rows = micro_batches[number].rows
        start = max(num_flow_matching, num_dropped[number])
        order = rows[:start] + sorted(rows[start:])
        own = {name: values[order] for name, values in vars(scalars).items()}
        if label_drop:
            own["uniform_drop"] = drops[number::num_micro_batches]
        dealt.append(StandardScalars(**own))
    return dealt


def _deal_kind(micro_batches: list[_Hand], work: Work, rows: range, num_dropped: list[int]) -> None:
    """Equally many of ``rows`` to each micro-batch: in order those that lose their label, so that no choice biases
    them, then the others.

    Args:
        num_dropped: by micro-batch.
    """
    next_row = rows.start
    for micro_batch, count in zip(micro_batches, num_dropped, strict=True):
        micro_batch.room = len(rows) // len(micro_batches)
        dropped = range(next_row, next_row + count)
        micro_batch.take(dropped, work)
        next_row = dropped.stop
    _give(micro_batches, work, work.most_first(range(next_row, rows.stop)))


def _give(micro_batches: list[_Hand], work: Work, rows: list[int]) -> None:
    """Each row to the micro-batch that has least of what it asks for, and room for it."""
    for guidance in sorted({work.guidance[row] for row in rows}, reverse=True):
        heap = [(guidance and m.guidance, m.perceptual, number) for number, m in enumerate(micro_batches) if m.room]
        heapq.heapify(heap)
        for row in rows:
            if work.guidance[row] != guidance:
                continue
            number = heapq.heappop(heap)[2]
            m = micro_batches[number]
            m.rows.append(row)
            m.room -= 1
            m.guidance += guidance
            m.perceptual += work.perceptual[row]
            if m.room:
                heapq.heappush(heap, (guidance and m.guidance, m.perceptual, number))
