"""The numbers of a short run are those on file: no refactor moves them unseen (tests/loss_trace.py)."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any
from unittest.mock import patch

import pytest
import torch

from pmf.flow.parameterization import MIN_TIME
from pmf.optim.ema import half_life_decay
from tests.loss_trace import EVALUATED, GOLDEN, SKIPPED, STEPS, TRACES, machine, record

# float64 of the same operations, summed in another order: at most 2e-13 was measured between code for AVX-512, for AVX2
# and for neither, and between torch 2.11 and 2.15. A millionth part of a constant moves something by more than 1e-8.
TOLERANCE = 1e-9
# Averages are float32, whose rounding may fall the other way: 6e-8 of each element, 1e-7 of a tensor measured.
AVERAGES = 1e-6
# Images are generated in float32 and rounded to 8 bits, so that a few of 2,560 pixels may differ by one; 1e-7 measured.
SCORES = {"fid": 1e-3, "inception_score": 1e-3}

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the numbers are those of a CPU")


def on_file(method: str) -> dict[str, Any]:
    return json.loads((GOLDEN / TRACES[method].file).read_text())


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is another number, or is there on one side only; empty where all is equal within the tolerances."""
    if len(recorded["metrics"]) != len(found["metrics"]) or recorded["tensors"].keys() != found["tensors"].keys():
        return ["other lines of metrics, or other tensors"]
    problems = []
    for line, ours in zip(recorded["metrics"], found["metrics"]):
        if line.keys() != ours.keys():
            problems.append(f"step {line['step']}: {sorted(line.keys() ^ ours.keys())}")
            continue
        for name, value in line.items():
            if not math.isclose(value, ours[name], rel_tol=SCORES.get(name, TOLERANCE)):
                problems.append(f"step {line['step']}: {name} is {ours[name]!r}, not {value!r}")
    for name, (norm, product) in recorded["tensors"].items():
        allowed = norm * (AVERAGES if name.startswith("ema_") else TOLERANCE)
        our_norm, our_product = found["tensors"][name]
        if abs(norm - our_norm) > allowed or abs(product - our_product) > allowed:
            problems.append(f"{name}: {[our_norm, our_product]}, not {[norm, product]}")
    return problems


@pytest.mark.parametrize("method", TRACES)
def test_the_trace_is_the_one_on_file(method, tmp_path):
    recorded, found = on_file(method), record(method, tmp_path / "run")
    assert differences(recorded, found) == []
    if recorded["machine"] == machine():  # elsewhere the last bits may be others
        assert recorded["metrics"] == found["metrics"]
        assert recorded["sha256"] == found["sha256"]


@pytest.mark.parametrize("method", TRACES)
def test_the_file_has_every_step_one_of_them_skipped_and_evaluations_in_between(method):
    recorded, output = on_file(method), TRACES[method].output
    steps = [line for line in recorded["metrics"] if "fid" not in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["step"] for line in steps if "loss" not in line] == [SKIPPED]
    assert [line["skipped"] for line in steps] == [int(step >= SKIPPED) for step in range(1, STEPS + 1)]
    assert [line["images"] for line in recorded["metrics"] if "fid" in line] == [EVALUATED, 2 * EVALUATED]
    # Each average is another one, and none is of weights that hardly moved.
    norms = {
        name: recorded["tensors"][f"{name}/{output}.linear.weight"][0] for name in recorded["sha256"] if name[0] != "o"
    }
    assert len({round(norm, 3) for norm in norms.values()}) == len(norms) == 4


@pytest.mark.parametrize(
    ("method", "override", "patched", "value", "what"),
    [
        ("pmf", "optimizer.weight_decay=0.010001", "", None, "step 4: loss_u "),
        ("pmf", "objective.adaptive_epsilon=0.01000001", "", None, "step 1: loss "),
        ("pmf", None, "pmf.flow.parameterization.MIN_TIME", MIN_TIME * (1 + 1e-6), "step 4: loss "),
        ("imf", "objective.time_mean=-0.5000005", "", None, "step 4: loss_u "),
        ("meanflow", "objective.time_mean=-0.5000005", "", None, "step 4: loss_u "),
    ],
)
def test_a_small_change_of_a_constant_is_seen_within_four_steps(method, override, patched, value, what, tmp_path):
    overrides = ["training.max_steps=4", "evaluation.every_images=0"] + [override] * bool(override)
    with patch(patched, value) if patched else contextlib.nullcontext():
        found = record(method, tmp_path / "run", *overrides)
    recorded = {"metrics": on_file(method)["metrics"][:4], "tensors": {}}
    assert [line for line in differences(recorded, found | {"tensors": {}}) if line.startswith(what)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "override", "patched", "value", "what"),
    [
        ("pmf", None, "pmf.optim.ema.half_life_decay", lambda *count: 0.99999 * half_life_decay(*count), "ema_10/"),
        ("imf", "objective.guidance_max=3.000003", "", None, "model/"),
        ("meanflow", "objective.guidance_mixing=0.3000003", "", None, "model/"),
    ],
)
def test_a_small_change_of_a_constant_is_seen_in_the_weights(method, override, patched, value, what, tmp_path):
    with patch(patched, value) if patched else contextlib.nullcontext():
        found = record(method, tmp_path / "run", *[override] * bool(override))
    assert [line for line in differences(on_file(method), found) if line.startswith(what)]
