"""Run by test_symmetric_product.py with Triton's interpreter, on the CPU: errors of the kernel, as JSON."""

from __future__ import annotations

import json
import sys

import torch
import triton
from torch import Tensor

from pmf.optim.symmetric_product_kernel import Tiles, launch
from tests.optim.reference import normal

TILES = Tiles(side=16, inner=16, warps=1, stages=1)
ALPHA, BETA = 2.0315, -4.7750


def matrices(layout: str, count: int, rows: int, columns: int) -> Tensor:
    if layout == "tall":
        return normal(count, columns, rows, dtype=torch.float32).mT
    return normal(count, rows, columns, dtype=torch.float32)


def error(x: Tensor, expected_of: Tensor, *, adds: bool) -> float:
    """Largest, relative to the largest entry; infinite if the result is not symmetric."""
    start = expected_of.double() @ expected_of.double().mT
    added = start.float() if adds else None
    expected = ALPHA * start + (BETA * start if adds else 0)
    product = torch.full(start.shape, float("nan"))
    launch(x, added, product, alpha=ALPHA, beta=BETA, tiles=TILES)
    if not torch.equal(product, product.mT):
        return float("inf")
    return float((product - expected).abs().max() / expected.abs().max())


def main() -> None:
    assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set"
    found = {}
    for layout in ("wide", "tall"):
        for count, rows, columns in ((2, 48, 32), (1, 40, 24), (1, 8, 50)):
            x = matrices(layout, count, rows, columns)
            found[f"{layout} {count} x {rows} x {columns}"] = error(x, x, adds=False)
            found[f"{layout} {count} x {rows} x {columns}, added"] = error(x, x, adds=True)
    changed = x.clone()
    changed[0, -1, -1] *= 1.001
    found["wrong by 1e-3 of an entry"] = error(changed, x, adds=False)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
