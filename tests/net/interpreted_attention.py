"""Run by test_attention.py with Triton's interpreter, which computes on the CPU: errors of the kernel, as JSON."""

from __future__ import annotations

import json
import sys

import torch
import triton

from pmf.net.attention_kernel import launch
from pmf.net.dual import Dual
from tests.net.attention_inputs import exact, random_duals, relative_error

# Rows with a tangent (of 3), heads, tokens, width; few heads, as the interpreter takes its time.
CASES = [(1, 1, 276, 64), (1, 1, 84, 72), (2, 2, 17, 80), (1, 1, 1, 64), (1, 2, 17, 24), (1, 2, 17, 33)]


def error(duals: list[Dual], expected: torch.Tensor) -> float:
    """Of the kernel, in float32, to what is expected."""
    rows, heads, tokens, width = duals[0].tangent.shape
    tangent = torch.full((rows, tokens, heads, width), float("nan")).transpose(1, 2)
    launch([dual.primal for dual in duals], [dual.tangent for dual in duals], tangent)
    return relative_error(tangent, expected)


def main() -> None:
    assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set"
    found = {}
    for rows, heads, tokens, width in CASES:
        duals = random_duals(3, rows, heads, tokens, width, torch.float32)
        found[f"{rows} x {heads} x {tokens} x {width}"] = error(duals, exact(duals))
    duals = random_duals(3, 1, 1, 17, 64, torch.float32)
    for name, dual in zip(("query", "key", "value"), duals, strict=True):
        changed = [Dual(d.value, d.tangent * 1.0001) if d is dual else d for d in duals]
        found[f"wrong by 1e-4: {name}"] = error(changed, exact(duals))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
