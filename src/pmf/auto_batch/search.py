"""Which sizes are tried, and which one wins. Knows nothing of devices: trying a size is a function that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

HEADROOM = 0.09
"""Share of the memory that stays free: fragments, evaluation, and rows that later steps draw."""
TOLERANCE = 0.02
"""A smaller size wins if it loses at most this share of images per second: memory that it leaves is a reserve."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One micro-batch size, tried on every rank (or estimated).

    Attributes:
        peak: bytes on the rank that needed most; None where it ran out of memory.
        images_per_second: of all ranks; None where nothing ran to the end.
    """

    size: int
    peak: int | None
    images_per_second: float | None
    fits: bool


Trial = Callable[[int], Measurement]


def largest_that_fits(sizes: Sequence[int], first: int, attempt: Trial) -> int | None:
    """Bracket by doubling strides from ``first``, then bisect; None if not even the smallest fits.

    Args:
        sizes: ascending; if one fits, so do those before it.
        first: the size to begin with, one of ``sizes``.
    """
    low, high = -1, len(sizes)  # indices: known to fit (-1: nothing does), known not to
    index, stride = sizes.index(first), 1
    bracketed = False
    while high - low > 1:
        fits = attempt(sizes[index]).fits
        low, high = (index, high) if fits else (low, index)
        bracketed = bracketed or (low >= 0 and high < len(sizes))
        if bracketed:
            index = (low + high) // 2
        else:
            index = min(index + stride, len(sizes) - 1) if fits else max(index - stride, 0)
            stride *= 2
    return sizes[low] if low >= 0 else None


def best_size(sizes: Sequence[int], largest: int, attempt: Trial) -> int:
    """The smallest size within TOLERANCE of the best images per second, going down from the largest that fits."""
    rates: dict[int, float] = {}
    for size in reversed(sizes[: sizes.index(largest) + 1]):
        rates[size] = attempt(size).images_per_second or 0.0
        if rates[size] < (1 - TOLERANCE) * max(rates.values()):
            break
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= (1 - TOLERANCE) * best)


def verified_size(sizes: Sequence[int], size: int, verify: Trial) -> int | None:
    """The first size from ``size`` downwards that passes once more; None if none does."""
    downwards = reversed(sizes[: sizes.index(size) + 1])
    return next((candidate for candidate in downwards if verify(candidate).fits), None)


def table(rows: Mapping[int, Measurement]) -> str:
    """One line for each size that was tried, ascending."""
    lines = [f"{'size':>6}  {'peak memory':>12}  {'images/s':>9}  fits"]
    for _, row in sorted(rows.items()):
        peak = "out of memory" if row.peak is None else f"{row.peak / 2**30:.2f} GiB"
        rate = "-" if row.images_per_second is None else f"{row.images_per_second:.4g}"
        lines.append(f"{row.size:>6}  {peak:>13}  {rate:>8}  {'yes' if row.fits else 'no'}")
    return "\n".join(lines)
