"""The stages, in order: the questions first whose answers the others depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.contact import attention, ceilings, exactness, graphs, inspection, processes, sampling, steps
from benchmarks.contact.setting import Report, Setting


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the result.

    Attributes:
        run: measures and reports; picklable.
        limit: seconds after which it is ended; what it has reported stays.
        worthwhile: seconds that must be left for it to be started.
        needs_cuda: leave it out on a CPU.
    """

    name: str
    run: Callable[[Setting, Report], None]
    limit: float
    worthwhile: float = 10
    needs_cuda: bool = False


STAGES = (
    Stage(name="ceilings", run=ceilings.measure, limit=60),
    Stage(name="float64_gradients", run=exactness.float64_gradients, limit=40),
    Stage(name="low_precision_gradients", run=exactness.low_precision_gradients, limit=120),
    Stage(name="perceptual_gradients", run=exactness.perceptual_gradients, limit=120),
    Stage(name="muon_bf16", run=exactness.muon_in_bfloat16, limit=45),
    Stage(name="attention", run=attention.measure, limit=60, needs_cuda=True),
    Stage(name="steps_64", run=partial(steps.measure, micro_batch=64), limit=150),
    Stage(name="steps_128", run=partial(steps.measure, micro_batch=128), limit=120),
    Stage(name="steps_64_perceptual", run=partial(steps.measure, micro_batch=64, perceptual=True), limit=120),
    Stage(name="steps_128_perceptual", run=partial(steps.measure, micro_batch=128, perceptual=True), limit=120),
    Stage(name="synchronisations", run=inspection.synchronisations, limit=60, needs_cuda=True),
    Stage(name="kernels", run=inspection.kernels, limit=60),
    Stage(name="kernels_perceptual", run=partial(inspection.kernels, perceptual=True), limit=90),
    Stage(name="steps_64_eager", run=partial(steps.measure, micro_batch=64, compiled=False), limit=60),
    Stage(
        name="steps_64_flash",
        run=partial(steps.measure, micro_batch=64, attention="flash"),
        limit=90,
        needs_cuda=True,
    ),
    Stage(
        name="steps_64_cudnn",
        run=partial(steps.measure, micro_batch=64, attention="cudnn"),
        limit=90,
        needs_cuda=True,
    ),
    Stage(
        name="steps_64_static",
        run=partial(steps.measure, micro_batch=64, static_shapes=True),
        limit=90,
        needs_cuda=True,
    ),
    Stage(
        name="steps_64_graph",
        run=partial(steps.measure, micro_batch=64, cuda_graph="step"),
        limit=120,
        needs_cuda=True,
    ),
    Stage(
        name="steps_128_graph",
        run=partial(steps.measure, micro_batch=128, cuda_graph="step"),
        limit=120,
        needs_cuda=True,
    ),
    Stage(name="graph_equals_no_graph", run=graphs.measure, limit=360, needs_cuda=True),
    Stage(name="sampling", run=sampling.measure, limit=60),
    Stage(name="train_kill_resume", run=processes.measure, limit=120, worthwhile=30),
)
