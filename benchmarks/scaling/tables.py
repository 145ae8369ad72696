"""The tables that ``python -m benchmarks.scaling`` prints, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.scaling.strategies import STRATEGIES, NetworkBytes, device_bytes, message_bytes, network_bytes
from pmf.config.sections import Config
from pmf.costs.memory import Line, MemoryEstimator, StateBytes
from pmf.distributed.batching import divisors
from pmf.optim.groups import parameter_groups

GIB = 2**30
HEADROOM = 0.09
DEVICES = {"A100-40": 40 * GIB, "A100-80": 80 * GIB, "H200": 139 * GIB}
SIMULATED = (16, 4)


def tables(config: Config, processes: Sequence[int]) -> Iterator[str]:
    """The lines for one config; each number of processes divides its global batch."""
    batch = config.training.global_batch_size
    estimator = MemoryEstimator(config)
    whole, *owned = (estimator.state(count) for count in (1, *processes))
    groups = parameter_groups(estimator.network, config.optimizer)
    muon = sum(4 * parameter.numel() for group in groups if group["kind"] == "muon" for parameter in group["params"])
    network = network_bytes(estimator, muon)
    activations = {"kept": estimator.line(*SIMULATED)}
    estimator.network.checkpoint_blocks()
    activations["checkpointed"] = estimator.line(*SIMULATED)

    yield f"\n### {config.model.name}, {config.data.image_size} pixels, global batch {batch}\n"
    parts = ("parameters", "gradients", "optimizer", "averages", "perceptual")
    yield f"State of one process, GiB: {', '.join(f'{part} {_gib(getattr(whole, part))}' for part in parts)}.\n"
    for name, line in activations.items():
        one, other = line.at(1), line.at(2)
        yield f"Activations {name}: {(other.peak - one.peak) / 2**20:.0f} MiB an image."
    sizes = " | ".join(f"{device}, {name}" for device in DEVICES for name in activations)
    yield f"\n| devices | strategy | state, GiB | messages, GiB a step | {sizes} |"
    yield f"|---|---|---|---|{'---|' * (len(DEVICES) * len(activations))}"
    for count, state in zip(processes, owned, strict=True):
        for strategy in STRATEGIES:
            yield _row(strategy, whole, state, network, count, batch, activations)


def _row(
    strategy: str,
    whole: StateBytes,
    owned: StateBytes,
    network: NetworkBytes,
    processes: int,
    batch: int,
    activations: dict[str, Line],
) -> str:
    """State and messages are those of a step without accumulation; the micro-batches fit with what it adds to them."""
    per_device = batch // processes
    state = device_bytes(strategy, whole, owned, network, processes, accumulation=1)
    messages = message_bytes(strategy, network, processes, accumulation=1)
    cells = []
    for memory in DEVICES.values():
        for line in activations.values():
            fitting = [
                size
                for size in divisors(per_device)
                if device_bytes(strategy, whole, owned, network, processes, per_device // size)
                + max(line.at(size).peak, owned.optimizer_work)
                <= (1 - HEADROOM) * memory
            ]
            cells.append(str(max(fitting)) if fitting else "-")
    return f"| {processes} | {strategy} | {_gib(state)} | {_gib(messages)} | {' | '.join(cells)} |"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
