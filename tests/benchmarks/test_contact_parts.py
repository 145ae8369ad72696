"""What the stages measure with, as far as a CPU can tell."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.contact import inspection
from benchmarks.contact.ceilings import BACKENDS, product_shapes, with_backend
from benchmarks.contact.exactness import Gradients, MicroBatch, Precision, relative_errors
from benchmarks.contact.setting import Setting, milliseconds
from benchmarks.contact.steps import NO_PERCEPTUAL, Run, random_perceptual, run_config
from pmf.perceptual.distances import create_distances

HERE = Path(__file__).relative_to(inspection.ROOT)


@pytest.fixture
def setting(tmp_path):
    return Setting(device="cpu", model="pmf_tiny_16", scratch=tmp_path)


def test_a_timer_calls_as_often_as_it_says_and_warms_up():
    calls: list[int] = []
    found = milliseconds(lambda: calls.append(1), "cpu", repeats=3, calls=5)
    assert len(calls) == (3 + 1) * 5
    assert found["device_ms"] == found["host_ms"] > 0


def test_a_chosen_attention_is_not_taken_from_what_was_compiled_with_another():
    """Torch's cache of compiled graphs does not know the backends, so it is off; afterwards all is as it was."""
    flags = (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.math_sdp_enabled)
    with with_backend(BACKENDS["flash"]):
        assert [flag() for flag in flags] == [True, False]
        assert not torch._functorch.config.enable_autograd_cache
    assert [flag() for flag in flags] == [True, True]
    assert torch._functorch.config.enable_autograd_cache
    with with_backend(BACKENDS["default"]):
        assert torch._functorch.config.enable_autograd_cache


def test_products_are_those_of_the_model():
    """L/16 has a SwiGLU of 2730, which is 2736 wide inside; 256 pixels in patches of 16 and 20 tokens: 276 rows."""
    setting = Setting(device="cuda", model="pmf_l_16", scratch=Path())
    shapes = {(1024, 1024), (2736, 1024), (1024, 2736)}
    assert set(product_shapes(setting)) == {(images * 276, shape) for images in (64, 128) for shape in shapes}


def test_a_wait_is_told_with_its_place():
    def waits_once() -> None:
        warnings.warn(f"{inspection.SYNCHRONISED} (Triggered internally)", stacklevel=1)

    def call() -> None:
        waits_once()
        waits_once()
        warnings.warn("something else", stacklevel=1)

    line = waits_once.__code__.co_firstlineno + 1
    assert inspection.waits(call) == {f"{HERE}:{line}": 2}
    assert inspection.waits(lambda: None) == {}


def test_kernels_are_counted_once_and_by_kind():
    """Of a GPU's profile only what ran on the device: the operations that launched it carry the same time."""

    def event(key: str, kind: DeviceType, device_us: float, *, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            device_type=kind,
            is_user_annotation=annotation,
            self_device_time_total=device_us,
            self_cpu_time_total=9.0,
            count=2,
        )

    events = [
        event("aten::mm", DeviceType.CPU, 300.0),
        event("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN", DeviceType.CUDA, 300.0),
        event("Optimizer.step#Muon.step", DeviceType.CUDA, 500.0, annotation=True),
        event("triton_red_fused_add_mean_mul_rsqrt_3", DeviceType.CUDA, 200.0),
        event("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", DeviceType.CUDA, 100.0),
        event("Memcpy DtoD (Device -> Device)", DeviceType.CUDA, 50.0),
        event("void at::native::vectorized_elementwise_kernel<4, float>", DeviceType.CUDA, 25.0),
        event("never ran", DeviceType.CUDA, 0.0),
    ]
    rows = list(inspection.device_rows(events, "cuda"))
    assert [(row["kind"], row["ms"]) for row in rows] == [
        ("product", 0.3),
        ("compiled, fused", 0.2),
        ("attention", 0.1),
        ("copy", 0.05),
        ("elementwise", 0.025),
    ]


def test_a_profile_of_a_product_is_of_a_product():
    matrix = torch.randn(256, 256)
    found = inspection.profiled(lambda: [matrix @ matrix for _ in range(8)], "cpu")
    assert found["top"][0]["kernel"] == "aten::mm" and found["top"][0]["count"] == 8
    assert sum(found["share"].values()) == pytest.approx(1)
    assert found["share"]["product"] == pytest.approx(
        sum(row["ms"] for row in found["top"] if row["kind"] == "product") / found["total_ms"]
    )


def test_errors_of_gradients_are_relative_norms_and_nan_is_the_worst():
    expected = Gradients(loss=2.0, by_name={"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}, scale=1.0)
    found = Gradients(loss=2.0, by_name={"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([12.0])}, scale=4.0)
    errors = relative_errors(found, expected)
    assert errors["relative_error"] == pytest.approx(0.5 / 13)
    assert errors["largest_of_a_parameter"] == pytest.approx(0.5 / 5)
    assert errors["that_parameter"] == "a"
    broken = Gradients(loss=2.0, by_name={**found.by_name, "b": torch.tensor([math.nan])}, scale=1.0)
    assert relative_errors(broken, expected)["that_parameter"] == "b"


def test_fp16_lowers_its_scale_until_all_gradients_are_finite(setting, monkeypatch):
    monkeypatch.setattr("benchmarks.contact.exactness.FIRST_SCALE", 2.0**40)
    micro_batch = MicroBatch(setting)
    expected, found = (micro_batch.gradients(precision) for precision in (Precision(), Precision(autocast=torch.half)))
    assert found.scale < 2.0**40, "float16 ends below 2^16"
    assert all(gradient.isfinite().all() for gradient in found.by_name.values())
    # Eleven bits of mantissa, through tens of layers.
    assert relative_errors(found, expected)["relative_error"] < 0.01


def test_random_perceptual_weights_pass_the_ordinary_loader(setting):
    """The timed step loads files as a run does, so it is the step of a run."""
    told: list[str] = []
    distances = create_distances(random_perceptual(setting), torch.device("cpu"), told.append)
    assert distances is not None and set(distances.networks) == {"lpips", "convnext"}
    assert len(told) == 2


def test_the_rows_that_are_reported_are_those_of_the_step(setting):
    """Which rows each micro-batch of a step needs, against what the step draws itself."""
    run = Run(run_config(setting, 4, compiled=False, perceptual=NO_PERCEPTUAL))
    drawn: list[tuple[int, int]] = []
    objective, real = run.trainer.train_step.objective, run.trainer.train_step.objective.draw

    def draw(*arguments, **options):
        draws = real(*arguments, **options)
        drawn.append((len(draws.unconditional_rows), len(draws.perceptual_rows)))
        return draws

    objective.draw = draw
    run.step(7)
    objective.draw = real
    assert drawn == run.row_counts(7) != run.row_counts(8)
