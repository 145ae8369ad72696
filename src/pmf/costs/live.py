"""Bytes in tensors that operations have made and that somebody still holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts while it is open, on real tensors and on fake ones.

    A storage counts once, however many views it has, from the operation that returns it until the last tensor over it
    is gone. Not counted: storages from before, tensors on the meta device, and what a kernel allocates and frees within
    one operation.

    Attributes:
        current: bytes now.
        peak: the largest ``current`` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self._count(value, is_new=False)
        result = func(*args, **kwargs)
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._count(value, is_new=True)
        return result

    def _count(self, tensor: Tensor, *, is_new: bool) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if is_new else 0
        self.current += size
        self.peak = max(self.peak, self.current)

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            self.current -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
