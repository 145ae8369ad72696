"""Tables and cells in Markdown, as a run's page and the card of published weights have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(rows: Iterable[Sequence[object]], columns: Sequence[str] = ("", "")) -> str:
    """A table, without a line break at its end.

    Args:
        rows: of as many cells as there are columns.
        columns: the head; empty for rows that begin with their name.
    """
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def fid_cell(record: Mapping[str, Any]) -> str:
    """FID of an evaluation's record, which has one."""
    return f"{record['fid']:.4g}"


def inception_cell(record: Mapping[str, Any]) -> str:
    """Inception score of an evaluation's record, and its deviation over the splits; ``-`` without one."""
    score = record.get("inception_score")
    return f"{score['mean']:.4g} ± {score['std']:.2g}" if score else "-"


def reference_cell(record: Mapping[str, Any]) -> str:
    """What an evaluation compared with: a file of statistics, or a data set; ``-`` where that is not recorded."""
    reference = record.get("reference", {})
    return str(reference.get("file") or reference.get("images") or "-")
