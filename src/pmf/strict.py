"""The check that stands before every load."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pmf.errors import UserError


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
