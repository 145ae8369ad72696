"""Looking into a step: where the host waits for the device, and which kernels the device runs."""

from __future__ import annotations

import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.contact.setting import Measurements, Report, Setting
from benchmarks.contact.steps import NO_PERCEPTUAL, Run, random_perceptual, run_config
from benchmarks.environment import synchronize
from pmf.perceptual.options import PerceptualConfig

ROOT = Path(__file__).parents[2]
SYNCHRONISED = "called a synchronizing CUDA operation"
WARM_UP_STEPS = 2
TOP_KERNELS = 25

# Kinds of kernels by their names (on a CPU by those of operations); the first match counts.
KINDS = {
    "attention": r"flash|fmha|sdpa|attention",
    "compiled, fused": r"^triton_",
    "product": r"gemm|nvjet|cutlass|cublas|xmma|splitk|conv|::(addmm|mm|bmm|baddbmm|linear|matmul)|mkldnn",
    "copy": r"memcpy|memset|copy|::(cat|fill_|zero_)",
    "reduction": r"reduce|norm|softmax|::(sum|mean)",
    "elementwise": r"elementwise|foreach|multi_tensor|index|distribution|::(add|sub|mul|div|silu|where)",
}


def synchronisations(setting: Setting, report: Report) -> None:
    """How often, and where, a micro-batch, the optimizer and a whole step make the host wait."""
    run = warmed_up(setting)
    calls = {"micro-batch": run.micro_batch_call(0), "optimizer": run.optimizer_call(), "step": lambda: run.step(0)}
    for name, call in calls.items():
        call()
        synchronize(setting.device)
        report(**{name: waits(call)})


def waits(call: Callable[[], object]) -> dict[str, int]:
    """Places in this repository from which a call made the host wait for the device, and how often.

    Torch warns at each wait. Those of the backward pass come from a thread without Python frames.
    """
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if SYNCHRONISED in str(message):
            frames = [frame for frame in traceback.extract_stack()[:-1] if frame.filename.startswith(str(ROOT))]
            own = [frame for frame in frames if frame.name != "note" and frame.filename != __file__]
            place = own[-1] if own else None
            found[f"{Path(place.filename).relative_to(ROOT)}:{place.lineno}" if place else "elsewhere"] += 1

    on_gpu = torch.cuda.is_available()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # put back by the context
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    return dict(found.most_common())


def kernels(setting: Setting, report: Report, *, perceptual: bool = False) -> None:
    """Time by kernel and by kind, of one micro-batch with its backward pass, and of the optimizer."""
    run = warmed_up(setting, random_perceptual(setting) if perceptual else NO_PERCEPTUAL)
    for name, call in {"micro-batch": run.micro_batch_call(0), "optimizer": run.optimizer_call()}.items():
        call()
        report(**{name: profiled(call, setting.device)})


def profiled(call: Callable[[], object], device: str) -> Measurements:
    """Launches and milliseconds in all, share by kind, and the kernels that take longest."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, acc_events=True) as profiler:  # without it torch warns of more cycles
        call()
        synchronize(device)
    rows = list(device_rows(profiler.key_averages(), device))
    total = sum(row["ms"] for row in rows)
    shares: Counter[str] = Counter()
    for row in rows:
        shares[row["kind"]] += row["ms"] / total
    return {
        "launches": sum(row["count"] for row in rows),
        "total_ms": total,
        "share": dict(shares.most_common()),
        "top": sorted(rows, key=lambda row: -row["ms"])[:TOP_KERNELS],
    }


def device_rows(events: Iterable[Any], device: str) -> Iterable[dict[str, Any]]:
    """The profiler's averages of what ran on the device itself: kernels on a GPU, operations on a CPU."""
    for event in events:
        if device == "cuda":
            # The operations that launched kernels are listed too, with the kernels' time.
            if event.device_type != DeviceType.CUDA or event.is_user_annotation:
                continue
            microseconds = event.self_device_time_total
        else:
            microseconds = event.self_cpu_time_total
        if microseconds:
            yield {
                "kernel": event.key[:120],
                "kind": kind_of(event.key),
                "count": event.count,
                "ms": microseconds / 1e3,
            }


def kind_of(kernel: str) -> str:
    """A row of KINDS, or ``other``."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")


def warmed_up(setting: Setting, perceptual: PerceptualConfig = NO_PERCEPTUAL) -> Run:
    """A run at a micro-batch of 64, compiled on a GPU, after some steps and with gradients."""
    config = run_config(setting, setting.micro_batch(64), compiled=True, perceptual=perceptual)
    run = Run(config)
    for number in range(WARM_UP_STEPS):
        run.step(number)
    run.micro_batch_call(0)()
    synchronize(setting.device)
    return run
