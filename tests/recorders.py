"""What stands in for CUDA graphs where there is no GPU: one that runs again, and one that repeats operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pmf.training.captured import Logs, Run


@dataclass
class Rerunning:
    """As a graph does, it writes its logs to the tensors that the recording gave, and recording has no effect.

    Attributes:
        parameters: whose gradients a recording must leave alone.
        replays: of each recording.
    """

    parameters: Iterable[Tensor] = ()
    replays: list[int] = field(default_factory=list)

    def warm_up(self, run: Run) -> Logs:
        return run()

    def record(self, run: Run) -> tuple[Logs, Callable[[], None]]:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        logs, number = run(), len(self.replays)
        for gradient, value in zip(gradients, before, strict=True):
            gradient.copy_(value)
        self.replays.append(0)

        def replay() -> None:
            self.replays[number] += 1
            for name, value in run().items():
                logs[name].copy_(value)

        return logs, replay


class Replaying:
    """Keeps a list of operations and takes them again, so that a number of the host stays what it was, as in a graph.

    Recording has no effect. An operation that asks a tensor for its value is refused, as CUDA refuses it. Backward
    passes are not recorded.

    Attributes:
        replays: of each recording.
        operations: names of those of each recording.
    """

    def __init__(self) -> None:
        self.replays: list[int] = []
        self.operations: list[list[str]] = []

    def warm_up(self, run: Run) -> Logs:
        return run()

    def record(self, run: Run) -> tuple[Logs, Callable[[], None]]:
        with _Tape() as tape:
            logs = run()
        tape.undo()
        number = len(self.replays)
        self.replays.append(0)
        self.operations.append([func.overloadpacket.__name__ for func, *_ in tape.calls])

        def replay() -> None:
            self.replays[number] += 1
            tape.replay()

        return logs, replay


class _Tape(TorchDispatchMode):
    """The operations within, on the tensors that they had."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value is asked for, which a graph does not know")
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for storage in {tensor.untyped_storage() for tensor in _tensors(value)}:
                    self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def undo(self) -> None:
        """Everything that was there before is as it was."""
        for storage, before in self._before.values():
            storage.copy_(before)

    def replay(self) -> None:
        """The same operations again; their results go where they went."""
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                read = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
                found = func(*args, **kwargs)
                for old, new in zip(_tensors(result), _tensors(found), strict=True):
                    if old.untyped_storage().data_ptr() not in read:  # otherwise a view, or written in place
                        old.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
