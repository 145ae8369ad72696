"""How much arithmetic a training step needs: what MFU (model FLOPs utilisation) is measured against.

The objective's own step runs on tensors without contents, and torch's formulas say what each operation takes. Products
alone count, two operations for each multiply-add. Left out is what the exact step could do without: zero padding,
activations that are computed a second time, and what a fused attention computes again in its backward pass.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pmf.costs.without_contents import without_contents
from pmf.data.codec import Codec
from pmf.distributed.world import ALONE
from pmf.flow.objective import MicroBatch, Objective

# Peak of dense half-precision products, operations per second (the makers' data sheets); the first match counts.
PEAK_FLOPS: dict[str, float] = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
}

NUM_ROWS = 2**16
"""Rows of the micro-batch that is counted; the standard error of any pass's share of them is 0.002 at most."""
FEW_ROWS = 64
"""The same for an objective that draws real noise for images without contents."""


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Floating point operations of a training step for each image.

    Attributes:
        without_gradients: of the forward pass, what no gradient flows back through.
        forward: the rest of it.
        backward: the gradients.
    """

    without_gradients: float
    forward: float
    backward: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.without_gradients + self.forward + self.backward

    def __str__(self) -> str:
        parts = ", ".join(f"{name.replace('_', ' ')} {flops / 1e9:.3g}" for name, flops in vars(self).items() if flops)
        return f"{self.total / 1e9:.4g} GFLOP an image ({parts})"


def step_flops(
    network: nn.Module, objective: Objective[Any, Any], image_shape: tuple[int, ...], rows: int = NUM_ROWS
) -> StepFlops:
    """Count a step's operations for each image.

    The rows that each pass has are those of the objective's draws for one large micro-batch: shares of them are the
    distributions', up to 1 / ``rows``. A small micro-batch whose rows are not divided evenly has other shares.

    Args:
        network: on any device; neither compiled nor checkpointed, which would count what is computed twice.
        objective: of :meth:`ObjectiveOptions.countable` options, without static shapes, whose filling would count.
        image_shape: (C, H, W).

    Raises:
        RuntimeError: network or objective ask for the contents of a tensor, or for what the meta device lacks.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    network, objective = without_contents((network, objective))
    if not _draws_without_contents(objective, image_shape):
        rows = min(rows, FEW_ROWS)
    for parameter in network.parameters():
        parameter.grad = None
    images = torch.empty(rows, *image_shape, device="meta")
    labels = torch.zeros(rows, dtype=torch.int64, device="meta")
    draws = objective.draw(images, torch.Generator().manual_seed(0))
    counter = CountedOperations()
    # Without collections of garbage, a third faster: each would look at all objects of torch and of the graph again.
    # A fused backward pass of attention computes the scores twice.
    with _no_collections(), sdpa_kernel(SDPBackend.MATH):
        with counter:
            objective.begin_step(network, [lambda: MicroBatch(images=images, labels=labels, draws=draws)], ALONE)
            total = objective.loss(network, images, labels, draws).total
        without_gradients, forward = counter.take()
        with counter:
            total.backward()
    return StepFlops(
        without_gradients=without_gradients / rows, forward=forward / rows, backward=sum(counter.take()) / rows
    )


def decoding_summary(codec: Codec) -> str:
    """What a run's summary says of the arithmetic of decoding an image; empty where it takes none, as pixels do."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    counter = CountedOperations()
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            codec.decode(torch.empty(1, *codec.shape, device="meta"))
    except Exception as error:  # no autoencoder at hand, or a codec that asks for the contents of a tensor
        reason = str(error).partition("\n")[0]
        return f"; decoding is not counted: {reason}"
    flops = sum(counter.take())
    return f"; decoding takes {flops / 1e9:.4g} GFLOP an image" if flops else ""


def _draws_without_contents(objective: Objective[Any, Any], image_shape: tuple[int, ...]) -> bool:
    """Whether the noise of images without contents has none either, so that any number of rows takes no memory."""
    draws = objective.draw(torch.empty(2, *image_shape, device="meta"), torch.Generator().manual_seed(0))
    values = vars(draws).values() if hasattr(draws, "__dict__") else [draws]
    return all(value.is_meta for value in tree_leaves(list(values)) if isinstance(value, Tensor) and value.ndim > 2)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CountedOperations(TorchDispatchMode):
    """Counts the operations within, by torch's own formulas.

    ``torch.utils.flop_counter.FlopCounterMode`` counts the same and takes ten times as long, mostly to find out the
    shapes of results again and again. Here an operation on shapes that were seen before gives an empty tensor of the
    shape that it gave then. So results may share no memory where they should: shapes are right, aliases are not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: dict[int, _Operation] = {}
        self._known: dict[Any, tuple[Callable[[], Any], int]] = {}
        self._without_gradients = 0
        self._with_gradients = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to tell torch.compile so at each operation takes time

    def take(self) -> tuple[int, int]:
        """What was counted since the last time: operations without and with a tensor that needs a gradient."""
        counted = self._without_gradients, self._with_gradients
        self._without_gradients = self._with_gradients = 0
        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Operations go by their addresses: to hash one takes longer than to find the result.
        operation = self._operations.get(id(func)) or self._operations.setdefault(id(func), _Operation(func))
        if not operation.makes_new:
            return func(*args, **kwargs)
        key = (id(func), *map(_described, args), *(map(_described, kwargs.items()) if kwargs else ()))
        known = self._known.get(key)
        if known is not None and forward_ad._current_level < 0:  # forward derivatives look at aliases
            make, flops = known
            result = make()
        else:
            result = func(*args, **kwargs)
            flops = operation.formula(*args, **kwargs, out_val=result) if operation.formula else 0
            if all(leaf is None or (isinstance(leaf, Tensor) and leaf.is_meta) for leaf in tree_leaves(result)):
                self._known[key] = (_maker(result), flops)
        if flops:
            if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
                self._with_gradients += flops
            else:
                self._without_gradients += flops
        return result


class _Operation:
    """What is to be known of one of torch's operations.

    Attributes:
        makes_new: its results are new tensors; no view, nothing changed in place.
        formula: torch's, for products; from the arguments and the result to a number of operations.
    """

    def __init__(self, func: Any) -> None:
        from torch.utils.flop_counter import flop_registry  # brings Triton

        self.makes_new = not any(part.alias_info for part in (*func._schema.arguments, *func._schema.returns))
        self.formula = flop_registry.get(func.overloadpacket)


def _described(value: Any) -> Any:
    """All that a result's shape can depend on, hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    if isinstance(value, dict):
        return tuple((name, _described(part)) for name, part in value.items())
    return type(value), value  # 1, 1.0 and True are equal, and give results of different dtypes


def _maker(result: Any) -> Callable[[], Any]:
    """A function that makes tensors like those of ``result``: one, or a tuple or list of them and None."""
    if result is None:
        return lambda: None
    if isinstance(result, Tensor):
        shape, strides, dtype = result.shape, result.stride(), result.dtype
        return lambda: torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    makers = [_maker(part) for part in result]
    kind = type(result)
    return lambda: kind(make() for make in makers)


def peak_flops(device: torch.device) -> float | None:
    """Of one device in half precision; None where no peak is known (on a CPU, say)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
