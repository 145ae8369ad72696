"""The step's benchmark compares like with like, and keeps what it measured when something after that fails."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import bench_step
from benchmarks.result_file import ResultFile
from benchmarks.step_variants import SMALL_NETWORK, Step, build_network, gradient_error, images_of
from pmf.net.pixel_transformer import PixelTransformer

SMALL = bench_step.Preset(network=SMALL_NETWORK, batch_size=4, repeats=6)


def small_step(variant: str, rows: int) -> Step:
    return Step(variant, build_network(SMALL_NETWORK, "cpu"), rows, "cpu", autocast=False)


def test_what_fails_after_the_timing_loses_nothing(tmp_path, monkeypatch):
    """As on a GPU: the memory of a variant does not suffice in a process of its own, and a comparison raises."""

    def out_of_memory(*arguments):
        raise subprocess.CalledProcessError(1, "python", stderr="torch.OutOfMemoryError")

    def wrong_type(*arguments):
        raise RuntimeError("expected scalar type Double but found Float\nand more")

    file = tmp_path / "step.json"
    monkeypatch.setattr(bench_step, "in_new_process", out_of_memory)
    monkeypatch.setattr(bench_step, "gradient_error", wrong_type)
    monkeypatch.setattr(bench_step, "PRESETS", {"cpu": replace(SMALL, repeats=2)})
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "--variants", "literal", "dual", "--json", str(file)])
    with pytest.raises(SystemExit) as end:
        bench_step.main()
    assert end.value.code == 1
    content = json.loads(file.read_text())
    assert {variant: len(seconds) for variant, seconds in content["seconds"].items()} == {"literal": 2, "dual": 2}
    assert content["failures"]["dual, gradients"] == "RuntimeError: expected scalar type Double but found Float"
    assert set(content["failures"]) == {"literal, memory", "dual, memory", "dual, gradients"}
    assert content["optimizer_seconds"] > 0 and 0 < content["optimizer_share"] < 1
    assert 1 < content["flop_ratio"] < 3, "measured after what failed"


def test_a_variant_that_fails_leaves_the_others_their_times(monkeypatch):
    real = Step.run

    def run(step: Step, seed: int) -> float:
        if step.variant == "literal":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 181 GiB")
        return real(step, seed)

    monkeypatch.setattr(Step, "run", run)
    record = ResultFile(None, {})
    bench_step.time_variants(SMALL, ["literal", "dual", "jvp"], "cpu", 4, record)
    assert {variant: len(seconds) for variant, seconds in record.content["seconds"].items()} == {"dual": 6, "jvp": 6}
    assert list(record.failures) == ["literal"]


def test_the_literal_step_gets_a_batch_that_fits_and_is_compared_by_image():
    # B/16 at 256 pixels keeps 1.41 GiB an image: 16 fit the smallest GPU with 40 GB, 64 do not fit one of 80 GB.
    assert [images_of("literal", batch) for batch in (8, 64, 128)] == [8, 16, 16]
    assert [images_of("dual", batch) for batch in (8, 64, 128)] == [8, 64, 128]
    times = {"literal": [4.0, 8.0, 6.0], "dual": [2.0, 2.0, 2.0]}
    # 16 images in 4, 8, 6 s against 64 in 2 s: by image 8, 16 and 12 times as fast.
    assert bench_step.speed_up(times, "dual", 64) == 12.0


def test_rows_are_dealt_as_in_a_run():
    """Rows of the guidance pass vary with the draws; dealt out of a global batch they vary far less."""
    step = small_step("dual", 64)
    dealt = [step.guided_rows(seed) for seed in range(40)]
    # Each row needs v_u or not by itself with some probability p: sqrt(64 p (1 - p)) without dealing, of which a
    # micro-batch of 1,024 / 64 = 16 sees a quarter and rounding. 40 draws know their deviation to within a seventh.
    share = statistics.mean(dealt) / 64
    undealt = (64 * share * (1 - share)) ** 0.5
    assert 0.1 < share < 0.9
    assert statistics.pstdev(dealt) < undealt / 2


def test_every_number_of_rows_is_taken_before_it_is_timed(monkeypatch):
    taken: dict[str, list[int]] = {}
    real = Step.run

    def run(step: Step, seed: int) -> float:
        taken.setdefault(step.variant, []).append(step.guided_rows(seed))
        return real(step, seed)

    monkeypatch.setattr(Step, "run", run)
    bench_step.time_variants(SMALL, ["dual", "jvp"], "cpu", 4, ResultFile(None, {}))
    for variant in ("dual", "jvp"):
        warm, timed = taken[variant][: -SMALL.repeats], taken[variant][-SMALL.repeats :]
        assert set(timed) == set(warm) and len(set(warm)) == len(warm) > 1


def test_compiled_gradients_are_compared_without_fused_attention(monkeypatch):
    """In torch 2.11 inductor's backward pass of fused attention raises on a CPU in float64."""
    fused: list[bool] = []

    def compile_blocks(network: PixelTransformer) -> None:
        network.register_forward_pre_hook(lambda *inputs: fused.append(torch.backends.cuda.flash_sdp_enabled()))

    monkeypatch.setattr(PixelTransformer, "compile_blocks", compile_blocks)
    # Sums over thousands of terms lose a few of float64's 16 digits.
    assert gradient_error("compiled") < 1e-11
    assert fused == [False, False], "guidance pass and training pass"
    assert torch.backends.cuda.flash_sdp_enabled()
