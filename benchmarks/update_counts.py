"""What an update takes on a GPU (optimizer and averages): kernels, bytes and operations, counted without one.

    python benchmarks/update_counts.py --config configs/pmf_b_16.yaml

One update by the shipped code on tensors without contents: with symmetric products by torch, with those by our kernel,
and as it is recorded for a CUDA graph, with its rates on the device.
Milliseconds are predicted, as in inductor_counts.py. Nothing here runs on a GPU.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.inductor_counts import BYTES_PER_SECOND, LAUNCH_SECONDS, PRODUCT_FLOPS
from pmf.commands import run_command
from pmf.config.network import network_of
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.costs.simulated_gpu import simulated_gpu
from pmf.costs.without_contents import without_contents
from pmf.optim import symmetric_product
from pmf.optim.ema import WeightAverages
from pmf.optim.groups import create_optimizer
from pmf.optim.symmetric_product_kernel import HALF

CHUNK = 2**16
"""Elements of a tensor that a block of threads takes in torch's operations on lists."""
MOST_CHUNKS = 320
MOST_TENSORS = (110, 64, 48, 36, 30)
"""In one kernel of such an operation, by how many lists it has."""
NO_KERNELS = {torch.ops.aten.detach.default, torch.ops.aten._unsafe_view.default}
PRODUCTS = ("mm", "bmm", "baddbmm")


@dataclass
class Count:
    """What an update runs."""

    kernels: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0

    def add(self, kernels: int, size: int, flops: int = 0) -> None:
        """An operation; its time is that of its products or of its memory, whichever is longer."""
        self.kernels += kernels
        self.bytes += size
        self.flops += flops
        self.seconds += kernels * LAUNCH_SECONDS + max(flops / PRODUCT_FLOPS, size / BYTES_PER_SECOND)


class Operations(TorchDispatchMode):
    """Counts every operation that is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace not in ("aten", "pmf") or func.is_view or func in NO_KERNELS:
            return result
        name = func._opname
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if name.startswith("_foreach"):
            written = list(args[0]) if name.endswith("_") else list(result)
            kernels = kernels_of_lists(written, len(tensors) // len(written))
            if result is None:  # what is written in place is among the tensors once, as what is read
                size += sum(tensor.numel() * tensor.element_size() for tensor in written)
            self.count.add(kernels, size)
        elif name in PRODUCTS:
            left, right = args[-2:]
            self.count.add(1, size, 2 * left.numel() * right.shape[-1])
        elif func.namespace == "pmf":
            self.count.add(1, size, symmetric_flops(args[0]))
        else:
            self.count.add(1, size)
        return result


def kernels_of_lists(tensors: list[Tensor], lists: int) -> int:
    """Of one of torch's operations on so many lists of tensors of these sizes."""
    chunks = sum(math.ceil(tensor.numel() / CHUNK) for tensor in tensors)
    return max(math.ceil(chunks / MOST_CHUNKS), math.ceil(len(tensors) / MOST_TENSORS[min(lists, 5) - 1]))


def symmetric_flops(x: Tensor) -> int:
    """Of the tiles that the kernel computes."""
    count, rows, columns = x.shape
    tiles = math.ceil(rows / HALF.side)
    return count * tiles * (tiles + 1) // 2 * 2 * HALF.side**2 * columns


def count_update(config: Config, *, kernel: bool, recorded: bool = False) -> Count:
    """One update of a run on one GPU.

    Args:
        kernel: symmetric products by our kernel where it is for them.
        recorded: rates are tensors, as in a CUDA graph.
    """
    with torch.device("meta"):
        network = network_of(config)
    smallest = symmetric_product.SMALLEST
    symmetric_product.SMALLEST = smallest if kernel else 2**30
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), simulated_gpu():
            network = without_contents(network, "cuda")
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer, averages = create_optimizer(network, config.optimizer), WeightAverages(network, config.ema)
            rates = (optimizer.next_rates(), averages.rates(images_seen=1024, images_per_step=1024))
            if recorded:
                rates = tree_map(lambda _: torch.empty((), device="cuda"), rates)
            with Operations() as operations:
                optimizer.move(rates[0])
                averages.move(network, rates[1])
    finally:
        symmetric_product.SMALLEST = smallest
    return operations.count


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/pmf_b_16.yaml"))
    options = parser.parse_args()
    config = load_config(options.config, ["data.path=."])
    ways = {
        "products by torch": count_update(config, kernel=False),
        "symmetric ones by our kernel": count_update(config, kernel=True),
        "the same, recorded": count_update(config, kernel=True, recorded=True),
    }
    print("| | kernels | GB | TFLOP | ms |")
    print("|---" * 5 + "|")
    for name, count in ways.items():
        numbers = f"{count.kernels} | {count.bytes / 1e9:.1f} | {count.flops / 1e12:.2f} | {1e3 * count.seconds:.1f}"
        print(f"| {name} | {numbers} |")


if __name__ == "__main__":
    run_command(main)
