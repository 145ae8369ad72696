"""The checks that stand before every load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pmf.errors import NotFiniteError, UserError


def require_same_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, intro: str, advice: str) -> None:
    """Names and shapes must agree exactly; dtypes are converted on copying.

    Raises:
        UserError: ``intro``, the first three tensors that differ, then ``advice``.
    """
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [
        f"{name} is {tuple(given[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems += [f"{name} is unknown here" for name in given if name not in own]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{intro}: {'; '.join(problems[:3])}{more}; {advice}")


def require_finite(tensors: Mapping[str, Tensor], *, intro: str, advice: str) -> None:
    """No value may be NaN or infinite.

    Raises:
        NotFiniteError: ``intro``, the first tensor that holds such values and how many there are, then ``advice``.
    """
    wrong = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if wrong:
        tensor = tensors[wrong[0]]
        more = f", and so do {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
        raise NotFiniteError(
            f"{intro}: {wrong[0]} holds {int((~tensor.isfinite()).sum())} of {tensor.numel()} values that are not "
            f"finite{more}; {advice}"
        )


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: the file cannot be read, or see :func:`parse_object`; ends with ``advice``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from None
    return parse_object(content, str(path), advice)


def parse_object(text: str | bytes, where: str, advice: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the text is not JSON, or JSON of another kind (a list, a number); ends with ``advice``.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        raise UserError(f"{where}: is not valid JSON; {advice}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: is a JSON {type(found).__name__} instead of an object; {advice}")
    return found
