"""A backward pass in Python, over the graph that autograd recorded.

Torch's own engine asks the driver for streams before it starts, so where there is no GPU it cannot run on tensors that
say they are on one. This one calls the same nodes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def backward(output: Tensor) -> None:
    """Add the gradients of ``output`` to those of the leaves, as ``Tensor.backward`` does; it loses its graph."""

    def add(leaf: Tensor, gradient: Tensor) -> None:
        leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)

    _propagate(output, torch.ones_like(output), add)


@torch.no_grad()
def grad(output: Tensor, inputs: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of leaves, as ``torch.autograd.grad`` gives them of these arguments; ``output`` loses its graph."""
    leaves: dict[Tensor, Tensor] = {}
    _propagate(output, gradient, leaves.__setitem__)
    return tuple(leaves[tensor] for tensor in inputs)


def _propagate(output: Tensor, gradient: Tensor, deliver: Callable[[Tensor, Tensor], None]) -> None:
    """Call each node once, after all that feed it; of those that are ready the youngest first, as the engine does."""
    root, slot = output.grad_fn, output.output_nr
    output.detach_()  # the graph is ours alone, so that what a node has saved is freed once it has been used
    waiting = _count_edges(root)
    arrived: dict[Any, list[Tensor | None]] = {node: [None] * len(node._input_metadata) for node in waiting}
    arrived[root][slot] = gradient
    order = itertools.count()
    ready: list[tuple[int, int, Any]] = [(0, next(order), root)]
    del root, gradient

    def take(node: Any) -> None:
        """A function of its own, so that it keeps nothing of one node while the next is called."""
        incoming = arrived.pop(node)
        del waiting[node]
        if hasattr(node, "variable"):
            if incoming[0] is not None:
                deliver(node.variable, incoming[0])
            return
        targets = [edge for edge in node.next_functions if edge[0] is not None]
        for (target, slot), part in zip(targets, call_node(node, incoming), strict=True):
            if part is not None:
                like = target._input_metadata[slot]  # as the engine: of the forward value's shape and dtype
                part = part.sum_to_size(like.shape).to(like.dtype)
                before = arrived[target][slot]
                arrived[target][slot] = part if before is None else before + part
            waiting[target] -= 1
            if not waiting[target]:
                heapq.heappush(ready, (-target._sequence_nr(), next(order), target))

    while ready:
        take(heapq.heappop(ready)[2])


def _count_edges(root: Any) -> dict[Any, int]:
    """By node, how many others feed it."""
    waiting: dict[Any, int] = {root: 0}
    stack = [root]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None and node not in waiting:
                waiting[node] = 0
                stack.append(node)
            if node is not None:
                waiting[node] += 1
    return waiting


def call_node(node: Any, incoming: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What a node sends to each of its inputs that need a gradient."""
    if all(part is None for part in incoming):
        return [None for target, _ in node.next_functions if target is not None]
    if hasattr(node, "needs_input_grad"):  # a Function in Python; it answers for every argument
        answers = node.apply(*incoming)
        answers = answers if isinstance(answers, tuple) else (answers,)
        return [part for part, needed in zip(answers, node.needs_input_grad, strict=True) if needed]
    outgoing = node(*incoming)
    outgoing = outgoing if isinstance(outgoing, tuple) else (outgoing,)
    return [part for part, (target, _) in zip(outgoing, node.next_functions) if target is not None]
