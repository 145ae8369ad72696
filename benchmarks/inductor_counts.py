"""Kernels and bytes of the code that inductor generates for a transformer block, and the time that a model predicts.

    python benchmarks/inductor_counts.py --model pmf_b_16 --micro-batch-size 64

No GPU is needed, and nothing here was measured on one: the code is generated for a Hopper GPU and read, not run.
Shapes are static. A kernel of inductor's reads and writes each of its buffers once.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch import nn
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import FallbackKernel, MultiOutput
from torch._inductor.scheduler import BaseSchedulerNode, ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._inductor.virtualized import V

from benchmarks.fake_inductor import NUM_MULTIPROCESSORS, fake_gpu, written_graphs
from pmf.net.adaptive_layers import AdaptiveBlock
from pmf.net.base import BaseBlock
from pmf.net.dual import Dual
from pmf.net.sizes import SIZES, find_architecture

BYTES_PER_SECOND = 3.6e12
"""Of an H200, by fused elementwise kernels and reductions."""
PRODUCT_FLOPS = 672e12
"""Per second, of a product that fills all multiprocessors to the last wave of 128 x 256 tiles."""
BATCHED_FLOPS = 200e12
"""The same for batched products of rows that are not aligned."""
ATTENTION_FLOPS = {"forward": 380e12, "backward": 280e12, "tangent": 300e12}
ATTENTION_PRODUCTS = {"forward": 2, "backward": 5, "tangent": 6}
"""Of T x T x d, for each head: what a fused kernel runs."""
LAUNCH_SECONDS = 2.5e-6

COPIES = {"clone", "convert_element_type", "permute", "view", "unsqueeze", "expand", "cat", "constant_pad_nd", "slice"}
"""Operations that compute nothing: a kernel made of these alone is a copy."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a graph.

    Attributes:
        kind: ``fused`` (inductor's own), ``copy`` (the same, but it computes nothing), ``product``, ``batched``,
            ``attention`` or ``other`` (of a library).
        name: the operations that it is made of.
        bytes: read and written.
        flops: of products.
        seconds: predicted.
    """

    kind: str
    name: str
    bytes: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class Graph:
    """The kernels of one graph of a block."""

    kernels: list[Kernel]

    def count(self, kind: str | None = None) -> int:
        """Kernels of a kind, or all."""
        return len(self._of(kind))

    def bytes(self, kind: str | None = None) -> int:
        """Read and written by kernels of a kind, or by all."""
        return sum(kernel.bytes for kernel in self._of(kind))

    def own_bytes(self) -> int:
        """Read and written by the kernels that inductor wrote."""
        return self.bytes("fused") + self.bytes("copy")

    def flops(self) -> int:
        """Of all products."""
        return sum(kernel.flops for kernel in self.kernels)

    def milliseconds(self, kind: str | None = None) -> float:
        """Predicted, of kernels of a kind, or of all."""
        return 1e3 * sum(kernel.seconds for kernel in self._of(kind))

    def _of(self, kind: str | None) -> list[Kernel]:
        return [kernel for kernel in self.kernels if kind in (None, kernel.kind)]


@dataclass(frozen=True)
class Rows:
    """How many rows each pass of a micro-batch has."""

    guidance: int
    value: int
    tangent: int

    @classmethod
    def of(cls, micro_batch_size: int) -> Rows:
        """As pMF's defaults deal them."""
        return cls(guidance=micro_batch_size * 9 // 8, value=micro_batch_size, tangent=micro_batch_size // 2)


def count_block(
    model: str,
    rows: Rows,
    *,
    image_size: int | None = None,
    passes: tuple[str, ...] = ("guidance", "value", "dual"),
    change: Callable[[BaseBlock], object] | None = None,
) -> dict[str, Graph]:
    """The graphs of one block in bfloat16 autocast: those of the passes, and ``backward``, that of the last pass.

    Args:
        model: of the table of sizes.
        image_size: side of the network's space; by default 16 patches.
        passes: ``guidance`` (without gradients), ``value`` and ``dual`` (the value, and the tangent of some rows).
        change: is called with the block before it is compiled.
    """
    graphs: dict[str, Graph] = {}
    with fake_gpu() as mode:
        with mode, torch.device("cuda"):
            block, tokens, context = _block_of(model, image_size or 16 * SIZES[model].patch_size)
        if change is not None:
            change(block)
        for name in passes:
            with mode, torch.device("cuda"):
                needs_gradient, count = name != "guidance", getattr(rows, "guidance" if name == "guidance" else "value")
                width = int(SIZES[model].numbers["width"])
                operands: list[Any] = [torch.empty(count, tokens, width, requires_grad=needs_gradient)]
                if context is None:
                    operands.append(torch.empty(count, width, requires_grad=needs_gradient))
                if name == "dual":
                    operands = [Dual(x, torch.empty(rows.tangent, *x.shape[1:])) for x in operands]
            with mode, torch.autocast("cuda", torch.bfloat16), _gradients(needs_gradient):
                written = written_graphs(block.body, *operands, *([] if context is None else [context]))
            graphs[name] = read_graph(written[0])
            if needs_gradient:
                graphs["backward"] = read_graph(written[1])
    return graphs


def _gradients(enabled: bool) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if enabled else torch.no_grad()


def _block_of(model: str, image_size: int) -> tuple[BaseBlock, int, nn.Module | None]:
    """The first block of a shallow network of this size, its number of tokens, and its rotation if it has one."""
    size = SIZES[model]
    shallow = {key: {"depth": 2, "head_depth": 1}.get(key, value) for key, value in size.numbers.items()}
    network = find_architecture(model)(
        image_size=image_size, patch_size=size.patch_size, channels=3, num_classes=10, **shallow
    )
    block = network.find_blocks()[0]
    if isinstance(block, AdaptiveBlock):
        return block, (image_size // size.patch_size) ** 2, None
    rotation: Any = network.rotation
    return block, int(rotation.cos.shape[0]), rotation


def read_graph(graph: GraphLowering) -> Graph:
    """The kernels of a graph that inductor has lowered."""
    with V.set_graph_handler(graph):
        return Graph([kernel for node in graph.scheduler.nodes for kernel in _kernels_of(node)])


def _kernels_of(node: BaseSchedulerNode) -> Iterator[Kernel]:
    if isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, MultiOutput):
        return  # no kernel; the latter is the name of one of several outputs
    if isinstance(node, ExternKernelSchedulerNode):
        yield _library_kernel(node.node)
        return
    names = {
        origin.target._opname
        for part in node.get_nodes()
        for origin in part.node.origins  # type: ignore[union-attr]
        if isinstance(origin.target, torch._ops.OpOverload)
    }
    size = int(node.get_read_write_buffers_sizes())
    kind = "copy" if names <= COPIES else "fused"
    yield Kernel(kind, " ".join(sorted(names)), size, 0, LAUNCH_SECONDS + size / BYTES_PER_SECOND)


def _library_kernel(kernel: Any) -> Kernel:
    name = kernel.op_overload._opname
    outputs = kernel.outputs if isinstance(kernel, FallbackKernel) else [kernel]
    size = sum(_bytes(value) for value in (*kernel.inputs, *outputs) if hasattr(value, "get_size"))
    shapes = [tuple(map(int, value.get_size())) for value in kernel.inputs if hasattr(value, "get_size")]
    kind, flops, rate = "other", 0, math.inf
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        left, right = shapes[-2:]
        m, k, n = left[-2], left[-1], right[-1]
        flops = 2 * math.prod(left[:-2]) * m * k * n
        kind, rate = ("product", _product_rate(m, k, n)) if len(left) == 2 else ("batched", BATCHED_FLOPS)
    elif "attention" in name:
        direction = next((part for part in ("backward", "tangent") if part in name), "forward")
        batch, heads, tokens, width = shapes[1]
        flops = ATTENTION_PRODUCTS[direction] * 2 * batch * heads * tokens**2 * width
        kind, rate = "attention", ATTENTION_FLOPS[direction]
    return Kernel(kind, name, size, flops, LAUNCH_SECONDS + max(flops / rate, size / BYTES_PER_SECOND))


def _bytes(value: Any) -> int:
    """Of a buffer, or of that part of one which a view shows."""
    return int(math.prod(map(int, value.get_size())) * value.get_dtype().itemsize)


def _product_rate(m: int, k: int, n: int) -> float:
    """Operations per second, from how full the last wave of tiles is; a long sum may be split in up to 8 parts."""

    def filled(tile_m: int, tile_n: int, parts: int) -> float:
        waves = math.ceil(m / tile_m) * math.ceil(n / tile_n) * parts / NUM_MULTIPROCESSORS
        return waves / math.ceil(waves)

    splits = range(1, max(1, min(8, k // 2048)) + 1)
    return PRODUCT_FLOPS * max(filled(*tile, parts) for tile in ((128, 256), (256, 128)) for parts in splits)


def repeats(model: str) -> dict[str, int]:
    """How many blocks of a training step run each graph."""
    numbers = SIZES[model].numbers
    depth, head = int(numbers["depth"]), int(numbers.get("head_depth", 0))
    if not head:
        return {"dual": depth, "backward": depth}
    return {"guidance": depth, "value": head, "dual": depth, "backward": depth + head}


def table(graphs: dict[str, Graph], times: dict[str, int]) -> Iterator[str]:
    """Lines of Markdown: a row for each graph, and what all blocks of a micro-batch take."""
    kinds = ("fused", "copy", "product", "batched", "attention", "other")
    titles = ("graph", "kernels", *kinds, "GB, own", "GB, libraries", "TFLOP", "ms", "blocks")
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for name, graph in graphs.items():
        own = graph.own_bytes()
        counts = " | ".join(str(graph.count(kind)) for kind in kinds)
        numbers = f"{own / 1e9:.3f} | {(graph.bytes() - own) / 1e9:.3f} | {graph.flops() / 1e12:.3f}"
        yield f"| {name} | {graph.count()} | {counts} | {numbers} | {graph.milliseconds():.3f} | {times.get(name, 0)} |"

    def together(measure: Callable[[Graph], float]) -> float:
        return sum(count * measure(graphs[name]) for name, count in times.items() if name in graphs)

    parts = ", ".join(f"{kind} {together(partial(Graph.milliseconds, kind=kind)):.1f}" for kind in kinds)
    yield (
        f"\nAll blocks, predicted: {together(Graph.milliseconds):.1f} ms ({parts}), "
        f"{together(Graph.count):.0f} kernels, {together(Graph.bytes) / 1e9:.1f} GB"
    )


def main() -> None:
    """Print the table of one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pmf_b_16", choices=list(SIZES))
    parser.add_argument("--micro-batch-size", type=int, default=64)
    parser.add_argument("--kernels", action="store_true", help="list each kernel too")
    options = parser.parse_args()
    graphs = count_block(options.model, Rows.of(options.micro_batch_size))
    print(f"{options.model}, micro-batch {options.micro_batch_size}, bfloat16 autocast, torch {torch.__version__}\n")
    print("\n".join(table(graphs, repeats(options.model))))
    if options.kernels:
        for name, graph in graphs.items():
            print(f"\n{name}")
            for kernel in graph.kernels:
                print(f"  {kernel.kind:9} {kernel.bytes / 1e6:8.1f} MB {1e6 * kernel.seconds:6.1f} us  {kernel.name}")


if __name__ == "__main__":
    main()
