"""What stands in for CUDA graphs where there is no GPU: records by running, and replays by running again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

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
