"""What every stage is told: device, model and sizes; and how a call is timed on any device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment, synchronize
from pmf.net.base import BaseNetwork
from pmf.net.sizes import SIZES, create_network

NUM_CLASSES = 1000
Measurements = dict[str, Any]
Report = Callable[..., None]
"""Called with measurements by name, which are in the result file from then on."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        global_batch: images of an optimizer step.
        shrink: what the micro-batches of 64 and 128 are divided by.
        timed_steps: optimizer steps that are timed, after as many to warm up.
        repeats: of everything else.
        copied_mib: size of the copy.
        product_side: rows and columns of the square product.
        few_images: batch of the comparisons of gradients.
        crop, convnext: of the perceptual networks.
    """

    global_batch: int
    shrink: int
    timed_steps: int
    repeats: int
    copied_mib: int
    product_side: int
    few_images: int
    crop: int
    convnext: str


# On a CPU only that every stage works is of interest.
OF_DEVICE = {
    "cuda": Sizes(
        global_batch=1024,
        shrink=1,
        timed_steps=5,
        repeats=10,
        copied_mib=1024,
        product_side=8192,
        few_images=16,
        crop=224,
        convnext="convnextv2_base",
    ),
    "cpu": Sizes(
        global_batch=16,
        shrink=16,
        timed_steps=1,
        repeats=2,
        copied_mib=16,
        product_side=256,
        few_images=4,
        crop=32,
        convnext="convnextv2_atto",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where stages run.

    Attributes:
        device: ``cuda`` or ``cpu``.
        model: a row of pmf/net/sizes.py.
        scratch: a folder for run folders and the like, removed in the end.
    """

    device: str
    model: str
    scratch: Path

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"

    @property
    def sizes(self) -> Sizes:
        """Those of the device."""
        return OF_DEVICE[self.device]

    @property
    def image_size(self) -> int:
        """256 pixels; on a CPU two patches."""
        return 256 if self.on_gpu else 2 * SIZES[self.model].patch_size

    def micro_batch(self, images: int) -> int:
        """``images``, or what stands for it on a CPU."""
        return images // self.sizes.shrink

    def network(self, *, inference: bool = False) -> BaseNetwork:
        """The model on its device, gates open: at the usual start half of the work multiplies zeros."""
        network = create_network(
            self.model,
            image_size=self.image_size,
            num_classes=NUM_CLASSES,
            inference=inference,
            generator=torch.Generator().manual_seed(0),
        ).to(self.device)
        open_gates(network)
        return network


def open_gates(network: BaseNetwork) -> None:
    """Replace the zeros of a network's start by small numbers, the same each time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(0.1)
            elif "_output.linear" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def milliseconds(function: Callable[[], object], device: str, *, repeats: int, calls: int = 1) -> dict[str, float]:
    """Medians over ``repeats`` rounds of ``calls`` calls each, per call, after one round to warm up.

    Returns:
        ``device_ms``: between two events on the device; ``host_ms``: until the call returns. A driver queues about a
        thousand kernels, so a longer call that is bound by the device contains waiting. On a CPU the two are equal.
    """
    on_device, on_host = [], []
    for round_number in range(repeats + 1):
        synchronize(device)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device == "cuda" else []
        started = time.perf_counter()
        if events:
            events[0].record()
        for _ in range(calls):
            function()
        if events:
            events[1].record()
        host = 1e3 * (time.perf_counter() - started)
        synchronize(device)
        if round_number:
            on_host.append(host / calls)
            on_device.append(events[0].elapsed_time(events[1]) / calls if events else host / calls)
    return {"device_ms": statistics.median(on_device), "host_ms": statistics.median(on_host)}


def describe(_: Setting, report: Report) -> None:
    """The head of the result file; also shows whether the device can be used at all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.zeros(1, device=device)
    report(device=device, **environment(device))
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        report(
            gpu={
                "memory_gib": properties.total_memory / 2**30,
                "multiprocessors": properties.multi_processor_count,
                "capability": f"{properties.major}.{properties.minor}",
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        )
    report(sizes=asdict(OF_DEVICE[device]))
