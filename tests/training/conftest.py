"""Runs with ``training.cuda_graph`` on a CPU, by stand-ins for CUDA graphs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pmf.training import step as step_module
from pmf.training import trainer as trainer_module
from pmf.training import update as update_module
from pmf.training.captured import CapturedMicroBatches, CapturedUpdate
from tests.recorders import Replaying, Rerunning


@dataclass
class Recorded:
    """The recorders of the runs of a test, in their order."""

    micro_batches: list[Rerunning] = field(default_factory=list)
    updates: list[Replaying] = field(default_factory=list)


@pytest.fixture
def recorded(monkeypatch) -> Recorded:
    """Runs with ``training.cuda_graph`` record on a CPU."""
    made = Recorded()

    def capture(run, parameters, recorder):
        made.micro_batches.append(recorder)
        recorder.parameters = parameters
        return CapturedMicroBatches(run, parameters, recorder)

    def capture_update(run, parameters, _recorder):
        made.updates.append(Replaying())
        return CapturedUpdate(run, parameters, made.updates[-1])

    monkeypatch.setattr(step_module, "CudaRecorder", Rerunning)
    monkeypatch.setattr(step_module, "CapturedMicroBatches", capture)
    monkeypatch.setattr(update_module, "CapturedUpdate", capture_update)
    monkeypatch.setattr(trainer_module, "require_cuda_graph", lambda *_: None)
    return made
