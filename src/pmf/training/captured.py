"""Parts of a step as CUDA graphs: forward and backward of a micro-batch for each size of the passes, and the update.

A graph does the same on the same memory whenever it is replayed. So what a micro-batch is made of is copied to tensors
that stay, gradients add up in tensors that stay (they are set to zero between steps, not dropped), and what the loss
logs is copied out. Draws and noise are made outside. The numbers of an update are copied to one tensor that stays.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pmf.errors import UserError
from pmf.flow.objective import MicroBatch

Logs = dict[str, Tensor]
Run = Callable[[], Logs]

WARM_UPS = 2
"""Times that a part is run before it is recorded: what is compiled, planned or loaded at first use must be there, and
so must gradients."""


class Recorder(Protocol):
    """What runs and records on a kind of device."""

    def warm_up(self, run: Run) -> Logs:
        """Run as it will be recorded."""

    def record(self, run: Run) -> tuple[Logs, Callable[[], None]]:
        """Record without effect; the tensors that a replay writes its logs to, and the replay."""


class CudaRecorder:
    """CUDA graphs that share their memory, since they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # one, since what a stream has freed is kept for it

    def warm_up(self, run: Run) -> Logs:
        """See :class:`Recorder`; on a stream of its own, as torch wants it."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            logs = run()
        torch.cuda.current_stream().wait_stream(self._stream)
        return logs

    def record(self, run: Run) -> tuple[Logs, Callable[[], None]]:
        """See :class:`Recorder`.

        Raises:
            UserError: something in it cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # The loader's thread may lock memory meanwhile, which is no part of the graph.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logs = run()
        except torch.OutOfMemoryError:  # it is a RuntimeError too
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"training.cuda_graph is on, but a part of the step cannot be recorded as a CUDA graph ({reason}); set "
                "it to true if it is step, which leaves the update out, or to false"
            ) from error
        return logs, graph.replay


@dataclass
class _Size:
    """What is known of micro-batches whose passes have a certain size."""

    inputs: MicroBatch[Any]
    warm_ups: int = 0
    logs: Logs | None = None
    replay: Callable[[], None] | None = None


class CapturedMicroBatches:
    """Forward and backward of micro-batches, by a graph for each size of their passes."""

    def __init__(
        self, run: Callable[[MicroBatch[Any]], Logs], parameters: Sequence[Tensor], recorder: Recorder
    ) -> None:
        """Record nothing yet.

        Args:
            run: forward and backward; gradients are added to those of the parameters, the logs returned.
        """
        self._run, self._parameters, self._recorder = run, parameters, recorder
        self._buffers: dict[Any, Tensor] = {}
        self._sizes: dict[Any, _Size] = {}
        self._gradients: list[Tensor | None] = []

    def __call__(self, micro_batch: MicroBatch[Any]) -> Logs:
        """Run, record or replay.

        Raises:
            UserError: it cannot be recorded.
        """
        tensors, others = _parts(micro_batch)
        key = tuple((name, value.shape, value.dtype) for name, value in tensors.items()), tuple(others.items())
        inputs = {name: self._buffer(name, value) for name, value in tensors.items()}
        if key not in self._sizes:
            self._sizes[key] = _Size(_with_tensors(micro_batch, inputs))
        size = self._sizes[key]
        torch._foreach_copy_(list(inputs.values()), list(tensors.values()))
        if size.replay is None and size.warm_ups < WARM_UPS:
            size.warm_ups += 1
            return self._recorder.warm_up(lambda: self._run(size.inputs))
        if size.replay is None:
            self._keep_gradients()
            size.logs, size.replay = self._recorder.record(lambda: self._run(size.inputs))
        self._keep_gradients()
        size.replay()
        assert size.logs is not None, "recorded together"
        return {name: value.clone() for name, value in size.logs.items()}

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        """The tensor that stays and stands for this part of all micro-batches of its shape."""
        key = name, like.shape, like.dtype
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(like)
        return self._buffers[key]

    def _keep_gradients(self) -> None:
        """The graphs add to the gradients that were there when the first was recorded."""
        gradients = [parameter.grad for parameter in self._parameters]
        self._gradients = self._gradients or gradients
        if any(one is not other for one, other in zip(gradients, self._gradients, strict=True)):
            raise RuntimeError("a gradient was replaced by another tensor; recorded graphs add to the first")


class CapturedUpdate:
    """An update of the weights by one graph; it reads its numbers from a tensor that is written before."""

    def __init__(self, run: Callable[[Any], None], parameters: Sequence[Tensor], recorder: Recorder) -> None:
        """Record nothing yet.

        Args:
            run: the update by the gradients of the parameters, given the numbers of a call, in the structure of the
                call, as tensors of shape () on the device, of the parameters' dtype.
        """
        self._run, self._parameters, self._recorder = run, parameters, recorder
        self._gradients: list[Tensor | None] = []
        self._structure: TreeSpec | None = None
        self._values = parameters[0].new_empty(0)
        self._warm_ups = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, numbers: Any) -> None:
        """Run, record or replay; anew where other parameters have gradients, or the numbers other names.

        Args:
            numbers: a structure of dicts and tuples.

        Raises:
            UserError: it cannot be recorded.
        """
        values, structure = tree_flatten(numbers)
        gradients = [parameter.grad for parameter in self._parameters]
        same = structure == self._structure and all(map(operator.is_, gradients, self._gradients))
        if not same:
            self._structure, self._gradients, self._warm_ups, self._replay = structure, gradients, 0, None
            self._values = self._parameters[0].new_empty(len(values))
        told = torch.empty(len(values), dtype=self._values.dtype, pin_memory=self._values.device.type == "cuda")
        self._values.copy_(told.copy_(torch.tensor(values, dtype=told.dtype)), non_blocking=True)
        if self._replay is None and self._warm_ups < WARM_UPS:
            self._warm_ups += 1
            self._recorder.warm_up(self._launch)
            return
        if self._replay is None:
            _, self._replay = self._recorder.record(self._launch)
        self._replay()

    def _launch(self) -> Logs:
        assert self._structure is not None, "numbers were given"
        self._run(tree_unflatten(self._values.unbind(), self._structure))
        return {}


def _parts(micro_batch: MicroBatch[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a micro-batch, and what else its draws say, by name."""
    draws = vars(micro_batch.draws)
    tensors = {name: value for name, value in draws.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in draws.items() if not isinstance(value, Tensor)}
    return {"images": micro_batch.images, "labels": micro_batch.labels, **tensors}, others


def _with_tensors(micro_batch: MicroBatch[Any], tensors: dict[str, Tensor]) -> MicroBatch[Any]:
    """The same micro-batch with these tensors in place of its own."""
    of_draws = {name: value for name, value in tensors.items() if name not in ("images", "labels")}
    draws = dataclasses.replace(micro_batch.draws, **of_draws)
    return MicroBatch(images=tensors["images"], labels=tensors["labels"], draws=draws)
