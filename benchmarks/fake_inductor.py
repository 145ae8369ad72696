"""What torch.compile's inductor would run on a Hopper GPU, found out on a machine that has none.

A function is traced and differentiated on tensors without contents (torch's fake tensors) of device ``cuda``, and
inductor lowers, fuses and writes the code of each graph for compute capability 9.0. Nothing is built or run.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._functorch.config
import torch._inductor.config
import torch._inductor.scheduler
import torch.nn.functional as F
import triton
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from triton.backends.compiler import GPUTarget

from pmf.costs.graph_walk import call_node

NUM_MULTIPROCESSORS = 132

HOPPER = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    gcnArchName="",
    multi_processor_count=NUM_MULTIPROCESSORS,
    regs_per_multiprocessor=2**16,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=141 * 2**30,
    L2_cache_size=50 * 2**20,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
)
"""What inductor asks of a device's properties."""


class _WrittenError(Exception):
    """The code of a graph is there; to load it would take a device."""


class _Driver:
    """What inductor asks of Triton's driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Within the mode that this gives, tensors of device ``cuda`` can be made, and autocast for it works."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        yield FakeTensorMode(allow_non_fake_inputs=True)


def written_graphs(function: Callable[..., Any], *inputs: Any) -> list[GraphLowering]:
    """The graphs that inductor makes of a call: the forward pass, and the backward pass if any output has a gradient.

    Args:
        function: traced as a whole, without graph breaks.
        inputs: tensors of a mode of :func:`fake_gpu`, and whatever else the function takes.
    """
    graphs: list[GraphLowering] = []
    write = GraphLowering.codegen

    def stop_after_writing(graph: GraphLowering) -> Any:
        write(graph)
        graphs.append(graph)
        raise _WrittenError

    def compile_graph(module: torch.fx.GraphModule, example: Sequence[Any], **options: Any) -> Any:
        unchanged, before = copy.deepcopy(module), len(graphs)
        with _pretended_device():
            try:
                compile_fx_inner(module, example, **options)
            except Exception:
                if len(graphs) == before:
                    raise

        def run(arguments: list[Any]) -> Any:
            taken = [*arguments]
            arguments.clear()
            return unchanged(*taken)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    torch._dynamo.reset()
    compiled = torch.compile(
        function, fullgraph=True, dynamic=False, backend=partial(compile_fx, inner_compile=compile_graph)
    )
    with (
        mock.patch.object(GraphLowering, "codegen", stop_after_writing),
        mock.patch.object(F, "scaled_dot_product_attention", _cudnn_attention),
        mock.patch.object(torch.autograd, "grad", gradients),
        mock.patch.object(UniformValueConstantFolder, "_deduce_value", _deduce_on_host),
        torch._inductor.config.patch(fx_graph_cache=False, compile_threads=1),
        torch._functorch.config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
    ):
        compiled(*inputs)
    torch._dynamo.reset()
    return graphs


@contextlib.contextmanager
def _pretended_device() -> Iterator[None]:
    """Inductor finds one device. Tracing and fake tensors must not: they would ask its driver."""
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": HOPPER,
        "get_device_capability": (HOPPER.major, HOPPER.minor),
        "get_device_name": HOPPER.name,
        "get_rng_state": torch.empty(0, dtype=torch.uint8),
        "set_rng_state": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=answer))
        for home in (CudaInterface, CudaInterface.Worker):
            for name in ("get_device_properties", "current_device"):
                stack.enter_context(mock.patch.object(home, name, return_value=answers[name]))
        stack.enter_context(mock.patch.object(torch._inductor.scheduler, "has_triton", return_value=True))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", _Driver()))
        yield


def _cudnn_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What torch takes on Hopper; asked without a device, it would take the form that is written out."""
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    output: Tensor = attend(query, key, value, None, torch.is_grad_enabled(), 0.0, False, False)[0]
    return output


_deduce_value = UniformValueConstantFolder._deduce_value


def _deduce_on_host(folder: UniformValueConstantFolder, node: torch.fx.Node) -> Any:
    """Inductor makes the constants that it folds on their device."""
    if node.target is torch.ops.aten.full.default:
        return torch.full([1], node.args[1], dtype=node.kwargs.get("dtype"))  # type: ignore[arg-type]
    return _deduce_value(folder, node)


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Sequence[Tensor], **_: Any
) -> tuple[Tensor | None, ...]:
    """In place of ``torch.autograd.grad``, whose engine asks the driver for streams; None where nothing arrives.

    Each node of the graph between outputs and inputs is called once, after all that feed it.
    """
    ends = [get_gradient_edge(tensor) for tensor in inputs]
    starts = [get_gradient_edge(tensor) for tensor in outputs]
    stops = {end.node for end in ends}
    order = _from_inputs_to_outputs([start.node for start in starts], stops)
    arrived: dict[Any, list[Tensor | None]] = {node: [None] * len(node._input_metadata) for node in order}
    for start, gradient in zip(starts, grad_outputs, strict=True):
        _add(arrived, start.node, start.output_nr, gradient)
    for node in reversed(order):
        if node in stops or hasattr(node, "variable"):
            continue
        targets = [edge for edge in node.next_functions if edge[0] is not None]
        for (target, slot), part in zip(targets, call_node(node, arrived[node]), strict=True):
            if target in arrived and part is not None:
                _add(arrived, target, slot, part)
    return tuple(arrived[end.node][end.output_nr] if end.node in arrived else None for end in ends)


def _from_inputs_to_outputs(roots: Sequence[Any], stops: set[Any]) -> list[Any]:
    """All nodes of the graph, each after those that it feeds."""
    order: dict[Any, None] = {}
    stack = [(root, False) for root in roots]
    while stack:
        node, is_done = stack.pop()
        if node in order:
            continue
        following = [] if node in stops else [target for target, _ in node.next_functions if target is not None]
        if is_done or not following:
            order[node] = None
        else:
            stack += [(node, True), *((target, False) for target in following if target not in order)]
    return list(order)


def _add(arrived: dict[Any, list[Tensor | None]], node: Any, slot: int, part: Tensor) -> None:
    like = node._input_metadata[slot]  # as the engine: of the forward value's shape and dtype
    part = part.sum_to_size(like.shape).to(like.dtype)
    before = arrived[node][slot]
    arrived[node][slot] = part if before is None else before + part
