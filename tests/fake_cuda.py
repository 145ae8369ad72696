"""A GPU that computes nothing, for machines that have none: its tensors have shape, dtype and device and no contents.

Tensors of the CPU stay real. What would make a host wait for a device, or mix the two, is an error here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pmf.costs.simulated_gpu import simulated_gpu

CPU = torch.device("cpu")
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "attention_tangent"}


class MixedDevicesError(Exception):
    """An operation reads from both devices, or copies from the GPU to the host."""


@dataclass
class Trace:
    """What happened on the GPU.

    Attributes:
        products: name and dtype of every matrix product, convolution and kernel of ours.
        waits: how often the host asked for the values of a tensor, by ``tolist``.
        blocking: how often it stood still while tensors of its own were copied to the GPU.
        copies: how often tensors of its own were copied to the GPU, in all.
        pageable: how many of these did not lie in page-locked memory.
        random: operations that drew random numbers on the GPU.
    """

    products: set[tuple[str, torch.dtype]] = field(default_factory=set)
    waits: int = 0
    blocking: int = 0
    copies: int = 0
    pageable: int = 0
    random: int = 0


class _Devices(TorchDispatchMode):
    """Sends each operation to the real CPU or to the fake GPU (to the ``FakeTensorMode`` around this)."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace
        self._pinned: set[int] = set()  # addresses of page-locked memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        target = kwargs.get("device")
        if not on_gpu and (target is None or torch.device(target).type != "cuda"):
            pinned = kwargs.pop("pin_memory", False)  # it takes a driver
            with unset_fake_temporarily():
                result = func(*args, **kwargs)
            if pinned:
                self._pinned.add(result.untyped_storage().data_ptr())
            return result
        name = func.overloadpacket.__name__
        if on_gpu:
            self._check(name, tensors, target)
        if name in PRODUCTS:
            self._trace.products.add((name, tensors[-1].dtype))
        if name == "_to_copy" and not on_gpu:
            self._count_copy(tensors[0], kwargs.get("non_blocking"))
        if name == "copy_" and on_gpu and not isinstance(tensors[1], FakeTensor):
            self._count_copy(tensors[1], args[2:] == (True,) or kwargs.get("non_blocking"))
        dropless = "attention" in name  # could drop at random, and is not asked to
        self._trace.random += torch.Tag.nondeterministic_seeded in func.tags and not dropless
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None  # of the CPU; there is no other
        if name == "_amp_update_scale_":  # torch cannot do this one without contents
            return args[0]
        return func(*args, **kwargs)

    def _count_copy(self, source: Tensor, non_blocking: bool | None) -> None:
        self._trace.copies += 1
        self._trace.blocking += not non_blocking
        self._trace.pageable += source.untyped_storage().data_ptr() not in self._pinned

    @staticmethod
    def _check(name: str, tensors: list[Tensor], target: Any) -> None:
        if target is not None and torch.device(target).type == "cpu":
            raise MixedDevicesError(f"{name} copies from the GPU to the host")
        real = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor) and tensor.ndim]
        if real and not (name == "copy_" and isinstance(tensors[0], FakeTensor)):
            raise MixedDevicesError(
                f"{name} of tensors on the GPU and a tensor of shape {tuple(real[0].shape)} on the CPU"
            )


@contextlib.contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trace]:
    """Within, device ``cuda`` exists; ``tolist`` of its tensors gives ones and is counted."""
    trace, generator = Trace(), torch.Generator

    def wait(tensor: Tensor) -> Any:
        trace.waits += 1
        return torch.ones(tensor.shape).tolist()

    monkeypatch.setattr(torch, "Generator", lambda device=CPU: generator())
    monkeypatch.setattr(FakeTensor, "tolist", wait)
    with simulated_gpu(), FakeTensorMode(allow_non_fake_inputs=True), _Devices(trace):
        yield trace
