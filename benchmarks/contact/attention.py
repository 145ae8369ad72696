"""The tangent of attention: our kernel, with several tilings, against the same written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contact.setting import Measurements, Report, Setting, milliseconds
from benchmarks.result_file import one_line
from pmf.net.attention import attention_tangent, written_out_tangent
from pmf.net.dual import Dual

# Rows with a tangent of a micro-batch of 64, heads, tokens, head width: B, L and H of pMF, MeanFlow's XL.
SHAPES = {"B": (32, 12, 276, 64), "L": (32, 16, 276, 64), "H": (32, 16, 276, 80), "XL of MeanFlow": (32, 16, 256, 72)}
TILINGS = [(64, 32, 4, 2), (64, 32, 4, 3), (64, 64, 4, 2), (128, 32, 8, 3), (128, 64, 8, 2)]
"""Queries and keys of a tile, warps, stages."""
CALLS = 10  # in one timed round


def measure(setting: Setting, report: Report) -> None:
    """Milliseconds of one block in bfloat16, relative errors to float64, and the kernel's time by tiling."""
    for name, shape in SHAPES.items():
        query, key, value = (random_dual(shape, seed) for seed in range(3))
        output = F.scaled_dot_product_attention(query.value, key.value, value.value)
        tensors = (query.value, key.value, value.value, query.tangent, key.tangent, value.tangent)
        ways: dict[str, Callable[[], Tensor]] = {
            "kernel": partial(attention_tangent, *tensors),
            "written out": partial(written_out_tangent, query, key, value, output),
            "written out, compiled": partial(torch.compile(written_out_tangent), query, key, value, output),
        }
        few = [Dual(dual.value[:2].double(), dual.tangent[:2].double()) for dual in (query, key, value)]
        exact = written_out_tangent(few[0], few[1], few[2], output[:2].double())
        found: Measurements = {}
        for way, call in ways.items():
            error = float((call()[:2].double() - exact).norm() / exact.norm())
            found[way] = {"ms": device_ms(setting, call), "relative_error": error}
            report(**{f"{name}, {' x '.join(map(str, shape))}": found})
        report(**{f"{name}, ms by queries x keys, warps, stages": by_tiling(setting, tensors)})


def random_dual(shape: tuple[int, ...], seed: int) -> Dual:
    """Value and tangent (rows, heads, T, d) whose heads lie side by side in memory, as layers leave them."""
    rows, heads, tokens, width = shape
    generator = torch.Generator("cuda").manual_seed(seed)
    both = torch.randn(2, rows, tokens, heads, width, device="cuda", dtype=torch.bfloat16, generator=generator)
    value, tangent = both.transpose(2, 3)
    return Dual(value, tangent)


def by_tiling(setting: Setting, tensors: tuple[Tensor, ...]) -> Measurements:
    """The kernel alone; or what a tiling failed with."""
    from pmf.net.attention_kernel import Tiles, launch

    output, found = torch.empty_like(tensors[0]), {}
    for queries, keys, warps, stages in TILINGS:
        tiles = Tiles(queries=queries, keys=keys, warps=warps, stages=stages)
        try:
            time_ms: float | str = device_ms(setting, partial(launch, tensors[:3], tensors[3:], output, tiles))
        except Exception as error:  # of Triton's many; the other tilings are of interest all the same
            time_ms = one_line(error)
        found[f"{queries} x {keys}, {warps}, {stages}"] = time_ms
    return found


def device_ms(setting: Setting, call: Callable[[], object]) -> float:
    """Of one call, median."""
    return milliseconds(call, setting.device, repeats=setting.sizes.repeats, calls=CALLS)["device_ms"]
