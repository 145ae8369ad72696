"""What compilation saves around the blocks: kernels and bytes of a micro-batch, counted without a GPU.

    python benchmarks/surroundings_counts.py --config configs/pmf_b_16.yaml --micro-batch-size 64

Embeddings, outputs, targets and loss terms of one micro-batch (``compiled_methods`` of network and objective), forward
and backward: the operations that run eagerly, and the kernels of the code that inductor writes for a Hopper GPU.
Milliseconds are predicted, as in inductor_counts.py. Nothing here runs on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.fake_inductor import fake_gpu, written_graphs
from benchmarks.inductor_counts import BYTES_PER_SECOND, LAUNCH_SECONDS, read_graph
from pmf.config.network import network_of
from pmf.config.yaml_file import load_config
from pmf.costs.graph_walk import backward
from pmf.costs.simulated_gpu import simulated_gpu
from pmf.costs.simulated_step import simulate
from pmf.costs.without_contents import without_contents
from pmf.flow.objective import create_objective

NO_KERNELS = {torch.ops.aten.detach.default, torch.ops.aten.add_.Tensor}
"""The latter adds up gradients of parameters, which is done outside of what is compiled too."""


@dataclasses.dataclass
class Call:
    """A call of a compiled method in a micro-batch; ``method`` is not yet wrapped."""

    name: str
    method: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    with_gradient: bool


@dataclasses.dataclass
class Count:
    """Kernels, and the bytes that they read and write."""

    kernels: int = 0
    bytes: int = 0

    def milliseconds(self) -> float:
        """Predicted."""
        return 1e3 * (self.kernels * LAUNCH_SECONDS + self.bytes / BYTES_PER_SECOND)


class Eager(TorchDispatchMode):
    """Counts operations that are no views, and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and func not in NO_KERNELS:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.count.kernels += 1
            self.count.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def calls_of_a_micro_batch(config: Any, micro_batch_size: int, mode: Any) -> list[Call]:
    """Run one on fake tensors, and note each call."""
    with torch.device("meta"):
        network = network_of(config)
    objective = create_objective(config.objective, num_classes=config.data.num_classes)
    with mode:
        network, objective = without_contents((network, objective), "cuda")
    calls: list[Call] = []

    def spied(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*arguments: Any, **keywords: Any) -> Any:
            calls.append(Call(name, method, arguments, keywords, torch.is_grad_enabled()))
            return method(*arguments, **keywords)

        return spy

    for owner in (network, objective):
        for name in owner.compiled_methods:
            setattr(owner, name, spied(f"{type(owner).__name__}.{name}", getattr(owner, name)))
    simulate(mode, network, objective, config, micro_batch_size, processes=1)
    return calls


def renewed(value: Any) -> Any:
    """The same as inputs of a graph of its own: tensors without history, in whatever they stand."""
    if isinstance(value, torch.nn.Parameter | torch.nn.Module):
        return value
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: renewed(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return {name: renewed(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(renewed(part) for part in value)
    return value


def ends(result: Any) -> list[Tensor]:
    """Tensors of a result that a backward pass begins at: those with a graph that no other is made of."""
    if dataclasses.is_dataclass(result):
        result = list(vars(result).values())
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    inner = {node for output in outputs for node in nodes_below(output.grad_fn)}
    return [output for output in outputs if output.grad_fn not in inner]


def nodes_below(root: Any) -> set[Any]:
    """The nodes of the graph that feed one."""
    found: set[Any] = set()
    stack = [root]
    while stack:
        new = {node for node, _ in stack.pop().next_functions if node is not None} - found
        found |= new
        stack += new
    return found


def count(call: Call, mode: Any) -> tuple[Count, Count]:
    """A call and its backward pass: eager, and compiled."""
    gradient = contextlib.nullcontext() if call.with_gradient else torch.no_grad()
    with mode, torch.autocast("cuda", torch.bfloat16), gradient:
        with simulated_gpu(), Eager() as eager:
            for output in ends(call.method(*renewed(call.arguments), **renewed(call.keywords))):
                backward(output)
        graphs = written_graphs(partial(call.method, **renewed(call.keywords)), *renewed(call.arguments))
    read = [read_graph(graph) for graph in graphs]
    return eager.count, Count(sum(graph.count() for graph in read), sum(graph.bytes() for graph in read))


def main() -> None:
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/pmf_b_16.yaml"))
    parser.add_argument("--micro-batch-size", type=int, default=64)
    options = parser.parse_args()
    without = [f"perceptual.{name}=false" for name in ("lpips", "convnext")]
    config = load_config(options.config, ["data.path=.", *without])
    rows: dict[str, list[Any]] = {}
    with fake_gpu() as mode:
        for call in calls_of_a_micro_batch(config, options.micro_batch_size, mode):
            eager, compiled = count(call, mode)
            row = rows.setdefault(call.name, [0, Count(), Count()])
            row[0] += 1
            for total, part in zip(row[1:], (eager, compiled), strict=True):
                total.kernels += part.kernels
                total.bytes += part.bytes
    print("| method | calls | eager: kernels | GB | ms | compiled: kernels | GB | ms |")
    print("|---" * 8 + "|")
    for name, (number, *counts) in rows.items():
        parts = " | ".join(f"{c.kernels} | {c.bytes / 1e9:.3f} | {c.milliseconds():.2f}" for c in counts)
        print(f"| {name} | {number} | {parts} |")


if __name__ == "__main__":
    main()
